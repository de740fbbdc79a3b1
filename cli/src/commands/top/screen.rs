//! The terminal while `weir top` has it: given back as it was, however that ends.

use std::io::{self, IsTerminal, Write};

use crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers, read};
use crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
};
use crossterm::{cursor, execute, queue};
use tokio::sync::mpsc;

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// To see no more.
    End,
    /// To see it in a window of another size.
    Resized,
}

/// The alternate screen, in raw mode.
pub struct Screen {
    keys: mpsc::Receiver<Key>,
    /// Where the system asks it to end.
    terminated: tokio::signal::unix::Signal,
}

/// Whether somebody looks at the output, and can press keys.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal() && io::stdin().is_terminal()
}

impl Screen {
    /// Takes the terminal.
    pub fn open() -> io::Result<Screen> {
        let terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let (pressed, keys) = mpsc::channel(16);
        enable_raw_mode()?;
        // From here on the terminal is given back by what is dropped.
        let screen = Screen { keys, terminated };
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        // Reading blocks; the thread ends with the process.
        std::thread::spawn(move || {
            while let Ok(event) = read() {
                if let Some(key) = key(&event)
                    && pressed.blocking_send(key).is_err()
                {
                    return;
                }
            }
        });
        Ok(screen)
    }

    /// Shows a text, as much of it as there is room for.
    pub fn draw(&mut self, text: &str) -> io::Result<()> {
        let (columns, rows) = size()?;
        let mut out = io::stdout().lock();
        for (row, line) in (0..rows).zip(text.lines().map(Some).chain(std::iter::repeat(None))) {
            let line: String = line.unwrap_or_default().chars().take(usize::from(columns)).collect();
            queue!(out, cursor::MoveTo(0, row), Clear(ClearType::CurrentLine))?;
            out.write_all(line.as_bytes())?;
        }
        out.flush()
    }

    /// The next key that means something; where none can come any more, the end.
    pub async fn key(&mut self) -> Key {
        tokio::select! {
            key = self.keys.recv() => key.unwrap_or(Key::End),
            _ = self.terminated.recv() => Key::End,
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Where the terminal is gone, nobody misses it.
        let _ = execute!(io::stdout(), cursor::Show, LeaveAlternateScreen);
        let _ = disable_raw_mode();
    }
}

fn key(event: &Event) -> Option<Key> {
    match event {
        Event::Resize(..) => Some(Key::Resized),
        Event::Key(key) if key.kind == KeyEventKind::Press => {
            let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            (control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)).then_some(Key::End)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn q_escape_and_control_c_end_it() {
        let pressed = |code, modifiers| key(&Event::Key(KeyEvent::new(code, modifiers)));
        for (code, modifiers, wanted) in [
            (KeyCode::Char('q'), KeyModifiers::NONE, Some(Key::End)),
            (KeyCode::Esc, KeyModifiers::NONE, Some(Key::End)),
            (KeyCode::Char('c'), KeyModifiers::CONTROL, Some(Key::End)),
            (KeyCode::Char('c'), KeyModifiers::NONE, None),
        ] {
            assert_eq!(pressed(code, modifiers), wanted, "{code:?}");
        }
        assert_eq!(key(&Event::Resize(80, 24)), Some(Key::Resized));
    }
}
