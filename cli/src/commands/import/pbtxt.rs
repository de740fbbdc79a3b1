//! Protocol buffers as text, whatever their schema: fields in order, so that those which nobody knows can be named too.

use std::fmt;

/// A message: its fields as they stand, repeated ones each for itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message(pub Vec<(String, Value)>);

/// What a field holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number, a word or a text, without its quotes.
    Scalar(String),
    /// A message.
    Message(Message),
}

/// A text that is none, and on which line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct BadText {
    line: usize,
    what: String,
}

/// How deep messages may lie in each other.
const DEPTH_MAX: usize = 64;

impl Message {
    /// Reads a text.
    pub fn parse(text: &str) -> Result<Message, BadText> {
        let mut reader = Reader { text, at: 0 };
        let message = reader.message(None, 0)?;
        Ok(message)
    }

    /// The first field of this name, as a scalar.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.all(name).find_map(Value::scalar)
    }

    /// The first field of this name, as a message.
    pub fn message(&self, name: &str) -> Option<&Message> {
        self.messages(name).next()
    }

    /// All messages of this name.
    pub fn messages(&self, name: &str) -> impl Iterator<Item = &Message> {
        self.all(name).filter_map(|value| match value {
            Value::Message(message) => Some(message),
            Value::Scalar(_) => None,
        })
    }

    /// The first field of this name, as a number.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.parse().ok()
    }

    /// All fields of this name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value)
    }
}

impl Value {
    /// Where it is one.
    pub fn scalar(&self) -> Option<&str> {
        match self {
            Value::Scalar(text) => Some(text),
            Value::Message(_) => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Scalar(text) => f.write_str(text),
            Value::Message(Message(fields)) => {
                f.write_str("{")?;
                fields.iter().try_for_each(|(name, value)| write!(f, " {name}: {value}"))?;
                f.write_str(" }")
            }
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn bad<T>(&self, what: impl Into<String>) -> Result<T, BadText> {
        let line = self.text[..self.at].matches('\n').count() + 1;
        Err(BadText { line, what: what.into() })
    }

    /// What comes next, behind white space and comments.
    fn peek(&mut self) -> Option<char> {
        loop {
            let rest = &self.text[self.at..];
            let next = rest.chars().next()?;
            if next.is_whitespace() {
                self.at += next.len_utf8();
            } else if next == '#' {
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else {
                return Some(next);
            }
        }
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += if found { wanted.len_utf8() } else { 0 };
        found
    }

    fn word(&mut self) -> &'a str {
        self.peek();
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_.+-".contains(c))).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// Fields until `end`, or until the text is over.
    fn message(&mut self, end: Option<char>, depth: usize) -> Result<Message, BadText> {
        if depth > DEPTH_MAX {
            return self.bad("messages lie too deep in each other");
        }
        let mut message = Message::default();
        loop {
            match (self.peek(), end) {
                (None, None) => return Ok(message),
                (None, Some(end)) => return self.bad(format!("a {end:?} is missing")),
                (Some(next), Some(end)) if next == end => {
                    self.at += 1;
                    return Ok(message);
                }
                _ => {}
            }
            let name = self.word();
            if name.is_empty() {
                return self.bad("a name of a field is missing");
            }
            let colon = self.take(':');
            if self.take('[') {
                while !self.take(']') {
                    let value = self.value(name, true, depth)?;
                    message.0.push((name.to_owned(), value));
                    if !self.take(',') && self.peek() != Some(']') {
                        return self.bad(format!("a comma or ] is missing in {name}"));
                    }
                }
            } else {
                let value = self.value(name, colon, depth)?;
                message.0.push((name.to_owned(), value));
            }
            if !self.take(',') {
                self.take(';');
            }
        }
    }

    fn value(&mut self, name: &str, colon: bool, depth: usize) -> Result<Value, BadText> {
        match self.peek() {
            Some('{') => {
                self.at += 1;
                Ok(Value::Message(self.message(Some('}'), depth + 1)?))
            }
            Some('<') => {
                self.at += 1;
                Ok(Value::Message(self.message(Some('>'), depth + 1)?))
            }
            Some('"' | '\'') if colon => {
                // Texts that follow each other are one.
                let mut text = String::new();
                while let Some(quote @ ('"' | '\'')) = self.peek() {
                    self.quoted(quote, &mut text)?;
                }
                Ok(Value::Scalar(text))
            }
            Some(_) if colon => match self.word() {
                "" => self.bad(format!("{name} has no value")),
                word => Ok(Value::Scalar(word.to_owned())),
            },
            _ => self.bad(format!("a colon or a brace is missing after {name}")),
        }
    }

    fn quoted(&mut self, quote: char, into: &mut String) -> Result<(), BadText> {
        self.at += 1;
        let mut escaped = false;
        for (i, next) in self.text[self.at..].char_indices() {
            match next {
                _ if escaped => {
                    into.push(match next {
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        other => other,
                    });
                    escaped = false;
                }
                '\\' => escaped = true,
                '\n' => break,
                _ if next == quote => {
                    self.at += i + 1;
                    return Ok(());
                }
                _ => into.push(next),
            }
        }
        self.bad("a text does not end on its line")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_every_form_that_is_in_use() {
        let message = Message::parse(
            "name: \"a\" # the model\nmax_batch_size: 8,\ninput [\n  { name: 'x' dims: [ -1, 3 ] },\n  { name: \"y\", dims: 1; dims: 2 }\n]\n\
             dynamic_batching { }\nversion_policy: { latest { num_versions: 1 } }\nparameters < key: \"k\" value: { string_value: \"a\\\"b\" \"c\" } >",
        )
        .unwrap();
        assert_eq!(message.text("name"), Some("a"));
        assert_eq!(message.number("max_batch_size"), Some(8));
        let inputs: Vec<&Message> = message.messages("input").collect();
        let dims = |i: usize| inputs[i].all("dims").filter_map(Value::scalar).collect::<Vec<_>>();
        assert_eq!((dims(0), dims(1)), (vec!["-1", "3"], vec!["1", "2"]));
        assert_eq!(message.message("dynamic_batching"), Some(&Message::default()));
        let latest = message.message("version_policy").and_then(|policy| policy.message("latest"));
        assert_eq!(latest.and_then(|latest| latest.number("num_versions")), Some(1));
        let value = message.message("parameters").and_then(|parameter| parameter.message("value"));
        assert_eq!(value.and_then(|value| value.text("string_value")), Some("a\"bc"));
    }

    #[test]
    fn what_is_none_is_told_with_its_line() {
        for (text, line, word) in [
            ("a: 1\nb {", 2, "missing"),
            ("a: 1\n\n}", 3, "name"),
            ("a: \"x\nb: 1", 1, "does not end"),
            ("a b: 1", 1, "colon"),
            ("a: [1 2]", 1, "comma"),
            ("a:", 1, "colon or a brace"),
            (&"a {".repeat(200), 1, "too deep"),
        ] {
            let bad = Message::parse(text).unwrap_err();
            assert!(bad.line == line && bad.what.contains(word), "{text:?}: {bad}");
        }
        assert_eq!(Message::parse("").unwrap(), Message::default());
    }
}
