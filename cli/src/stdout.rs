//! What is printed, where whoever reads it may have read enough: the standard library's `println!` panics then, which would end a server whose
//! first lines went to `head`, and end `weir get models | head -1` with a panic. These macros stand in its place for the whole crate.

use std::fmt;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Whether whoever read has gone.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether nobody reads any more, so that a command that prints until it is stopped has nothing left to do.
pub fn is_closed() -> bool {
    CLOSED.load(Relaxed)
}

/// Prints, for as long as somebody reads: what a command does, and its exit code, do not depend on that.
///
/// # Panics
/// Where the output fails otherwise, as on a full disk: a result that is cut short must not look like one.
pub fn print(text: fmt::Arguments<'_>) {
    match std::io::stdout().write_fmt(text) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => CLOSED.store(true, Relaxed),
        Err(error) => panic!("cannot write to stdout: {error}"),
    }
}

/// Likewise, of what people read on stderr, where nothing can be said of a failure.
pub fn print_error(text: fmt::Arguments<'_>) {
    let _ = std::io::stderr().write_fmt(text);
}

macro_rules! print {
    ($($text:tt)*) => { $crate::stdout::print(format_args!($($text)*)) };
}

macro_rules! println {
    () => { $crate::stdout::print(format_args!("\n")) };
    ($($text:tt)*) => { $crate::stdout::print(format_args!("{}\n", format_args!($($text)*))) };
}

macro_rules! eprint {
    ($($text:tt)*) => { $crate::stdout::print_error(format_args!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { $crate::stdout::print_error(format_args!("{}\n", format_args!($($text)*))) };
}
