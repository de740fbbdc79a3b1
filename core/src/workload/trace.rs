//! A recorded trace: the requests of a service, as they came.
//!
//! The contract: the text is CSV with the header `t_seconds,model` or `t_seconds,model,tokens_in,tokens_out`, one request
//! a row, sorted by time. Times are seconds since the first request (or since the recording began), and are kept to the
//! nanosecond. Reading and unpacking the file is the caller's.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::units::Instant;

/// Requests in the order in which they came; at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    requests: Vec<Request>,
    models: Vec<String>,
}

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it came, on the trace's own axis.
    pub at: Instant,
    /// What it asked: an index into [`Trace::models`].
    pub model: usize,
    /// Its size, where the trace has sizes.
    pub tokens: Option<Tokens>,
}

/// The size of a request to a language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Of its prompt.
    pub input: u64,
    /// Of its answer.
    pub output: u64,
}

/// A text that is no trace. Lines count from 1, which is the header.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BadTrace {
    #[error("the trace is empty; its first line has to be {HEADER} or {HEADER_WITH_TOKENS}")]
    Empty,
    #[error("line 1: {found:?} is not the header of a trace; write {HEADER} or {HEADER_WITH_TOKENS}")]
    Header { found: String },
    #[error("the trace has a header and no request; add a row for each")]
    NoRequests,
    #[error("line {line}: {found} columns where the header has {expected}")]
    Columns { line: usize, found: usize, expected: usize },
    #[error("line {line}: {text:?} is no time; give seconds from the start, from 0 to {SECONDS_MAX}")]
    Time { line: usize, text: String },
    #[error("line {line}: {at} s comes after {before} s; sort the rows by time")]
    Unsorted { line: usize, at: f64, before: f64 },
    #[error("line {line}: the model has no name")]
    Model { line: usize },
    #[error("line {line}: {text:?} is no number of tokens; give a whole number")]
    Tokens { line: usize, text: String },
}

const HEADER: &str = "t_seconds,model";
const HEADER_WITH_TOKENS: &str = "t_seconds,model,tokens_in,tokens_out";
/// 46 days. Below 2²² s a double of seconds is off by at most 0.23 ns and its product with a billion by 0.25 ns, so that the
/// nearest nanosecond is the one that was written. It also refuses seconds since 1970.
const SECONDS_MAX: f64 = 4_000_000.0;

impl Trace {
    /// Parses the text of a trace.
    pub fn parse(text: &str) -> Result<Trace, BadTrace> {
        // Spreadsheets put a byte order mark before the first line.
        let mut lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines().map(str::trim_end).enumerate();
        let header = lines.next().ok_or(BadTrace::Empty)?.1;
        let columns_expected = match header {
            HEADER => 2,
            HEADER_WITH_TOKENS => 4,
            "" => return Err(BadTrace::Empty),
            _ => return Err(BadTrace::Header { found: shortened(header) }),
        };
        let mut requests: Vec<Request> = Vec::new();
        let mut models = Models::default();
        for (line, row) in lines.map(|(i, row)| (i + 1, row)).filter(|(_, row)| !row.is_empty()) {
            let columns = row.split(',').count();
            if columns != columns_expected {
                return Err(BadTrace::Columns { line, found: columns, expected: columns_expected });
            }
            let mut columns = row.split(',').map(str::trim);
            let mut column = || columns.next().unwrap_or_default();
            let at = parse_seconds(column(), line)?;
            if let Some(before) = requests.last().map(|request| request.at).filter(|before| *before > at) {
                let [at, before] = [at, before].map(|instant| instant.as_nanos() as f64 / 1e9);
                return Err(BadTrace::Unsorted { line, at, before });
            }
            let name = column();
            if name.is_empty() {
                return Err(BadTrace::Model { line });
            }
            let tokens = if columns_expected == 4 {
                Some(Tokens { input: parse_tokens(column(), line)?, output: parse_tokens(column(), line)? })
            } else {
                None
            };
            requests.push(Request { at, model: models.index(name), tokens });
        }
        if requests.is_empty() {
            return Err(BadTrace::NoRequests);
        }
        Ok(Trace { requests, models: models.names })
    }

    /// All requests, sorted by time.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// The models asked for, in the order in which they first appear.
    pub fn models(&self) -> &[String] {
        &self.models
    }

    /// When the requests came.
    pub fn instants(&self) -> Vec<Instant> {
        self.requests.iter().map(|request| request.at).collect()
    }

    /// From the start of the axis to the last request.
    pub fn length(&self) -> Duration {
        self.requests.last().map_or(Duration::ZERO, |request| request.at.since(Instant::ZERO))
    }

    /// The requests for one model, on the same axis: what one endpoint of a superposition sees. None if it has none.
    pub fn of_model(&self, name: &str) -> Option<Trace> {
        let wanted = self.models.iter().position(|model| model == name)?;
        let requests = self.requests.iter().filter(|request| request.model == wanted);
        let requests = requests.map(|request| Request { model: 0, ..*request }).collect();
        Some(Trace { requests, models: vec![name.to_owned()] })
    }
}

/// Names by their first appearance.
#[derive(Default)]
struct Models {
    names: Vec<String>,
    index: BTreeMap<String, usize>,
}

impl Models {
    fn index(&mut self, name: &str) -> usize {
        if let Some(index) = self.index.get(name) {
            return *index;
        }
        self.names.push(name.to_owned());
        self.index.insert(name.to_owned(), self.names.len() - 1);
        self.names.len() - 1
    }
}

fn parse_seconds(text: &str, line: usize) -> Result<Instant, BadTrace> {
    match text.parse::<f64>() {
        // To the nearest nanosecond: 0.3 s is 300 ms, though no double is 0.3. NaN is in no range.
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => {
            Ok(Instant::from_nanos((seconds * 1e9).round() as u64))
        }
        _ => Err(BadTrace::Time { line, text: shortened(text) }),
    }
}

fn parse_tokens(text: &str, line: usize) -> Result<u64, BadTrace> {
    text.parse().map_err(|_| BadTrace::Tokens { line, text: shortened(text) })
}

/// As much of a text as an error quotes: a file that is no trace may be one long line.
fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}
