//! The text of a specification, `name:key=value,…`, and what each value may be.
//!
//! A value is checked in one place, whether it was read or a caller built it: [`super::Arrivals::parse`] and
//! [`super::Arrivals::process`] give the same error.

use std::fmt;
use std::time::Duration;

use super::arrivals::BadArrivals;

/// The numbers that a parameter may be.
#[derive(Clone, Copy)]
pub(super) enum Allowed {
    /// Above the first, at most the second.
    Above(f64, f64),
    /// At least the first, at most the second.
    Between(f64, f64),
    /// At least the first, below the second.
    Below(f64, f64),
    /// A whole number in between.
    Whole(u32, u32),
    /// A time of at least the first and at most the second.
    Time(Duration, Duration),
    /// Any text that is not empty.
    Name,
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Allowed::Above(low, high) => write!(f, "a number above {low} and at most {high}"),
            Allowed::Between(low, high) => write!(f, "a number from {low} to {high}"),
            Allowed::Below(low, high) => write!(f, "a number of at least {low} and below {high}"),
            Allowed::Whole(low, high) => write!(f, "a whole number from {low} to {high}"),
            Allowed::Time(low, high) => {
                write!(f, "a time from {} to {}, such as 300ms or 2s", time_text(low), time_text(high))
            }
            Allowed::Name => f.write_str("a name without a comma"),
        }
    }
}

/// A parameter of a process: its name and what it may be.
#[derive(Clone, Copy)]
pub(super) struct Parameter {
    pub process: &'static str,
    pub name: &'static str,
    pub allowed: Allowed,
}

/// The longest time in a specification. Below 2²² s, which are 48 days, a double of seconds is exact to the nanosecond.
pub(super) const TIME_MAX: Duration = Duration::from_secs(30 * 86_400);
/// The shortest period of a process: shorter ones are no longer long against the nanosecond of an instant.
pub(super) const PERIOD_MIN: Duration = Duration::from_micros(1);

impl Parameter {
    pub(super) fn check(&self, value: f64) -> Result<(), BadArrivals> {
        let good = match self.allowed {
            Allowed::Above(low, high) => value > low && value <= high,
            Allowed::Between(low, high) => value >= low && value <= high,
            Allowed::Below(low, high) => value >= low && value < high,
            Allowed::Whole(low, high) => value >= f64::from(low) && value <= f64::from(high) && value.fract() == 0.0,
            Allowed::Time(..) | Allowed::Name => false,
        };
        if good { Ok(()) } else { Err(self.bad(&value.to_string())) }
    }

    pub(super) fn check_time(&self, value: Duration) -> Result<(), BadArrivals> {
        match self.allowed {
            Allowed::Time(low, high) if value >= low && value <= high => Ok(()),
            _ => Err(self.bad(&time_text(value))),
        }
    }

    pub(super) fn check_name(&self, value: &str) -> Result<(), BadArrivals> {
        if value.is_empty() || value.contains(',') { Err(self.bad(value)) } else { Ok(()) }
    }

    fn bad(&self, text: &str) -> BadArrivals {
        BadArrivals::Value {
            process: self.process,
            parameter: self.name,
            text: text.to_owned(),
            allowed: self.allowed.to_string(),
        }
    }
}

/// The `key=value` pairs of one specification.
pub(super) struct Values<'a> {
    process: &'static str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Values<'a> {
    /// Pairs out of `text`, each of them one of `known` and there once. An empty text has none.
    pub(super) fn read(process: &'static str, text: &'a str, known: &[Parameter]) -> Result<Self, BadArrivals> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            if !known.iter().any(|parameter| parameter.name == key) {
                let known = match known {
                    [] => "none".to_owned(),
                    _ => known.iter().map(|parameter| parameter.name).collect::<Vec<_>>().join(", "),
                };
                return Err(BadArrivals::UnknownParameter { process, parameter: key.to_owned(), known });
            }
            if pairs.iter().any(|(earlier, _)| *earlier == key) {
                return Err(BadArrivals::Repeated { process, parameter: key.to_owned() });
            }
            pairs.push((key, value));
        }
        Ok(Values { process, pairs })
    }

    /// A number, apart from whether it is allowed; none if it is not there.
    pub(super) fn number(&self, parameter: &Parameter) -> Result<Option<f64>, BadArrivals> {
        self.find(parameter, |text| text.parse().ok())
    }

    /// Likewise, of a time.
    pub(super) fn time(&self, parameter: &Parameter) -> Result<Option<Duration>, BadArrivals> {
        self.find(parameter, parse_time)
    }

    /// Likewise, of a text.
    pub(super) fn name(&self, parameter: &Parameter) -> Result<Option<String>, BadArrivals> {
        self.find(parameter, |text| Some(text.to_owned()))
    }

    /// A number that has to be there.
    pub(super) fn needed_number(&self, parameter: &Parameter) -> Result<f64, BadArrivals> {
        self.number(parameter)?.ok_or_else(|| self.missing(parameter))
    }

    /// A time that has to be there.
    pub(super) fn needed_time(&self, parameter: &Parameter) -> Result<Duration, BadArrivals> {
        self.time(parameter)?.ok_or_else(|| self.missing(parameter))
    }

    fn find<T>(&self, parameter: &Parameter, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, BadArrivals> {
        match self.pairs.iter().find(|(key, _)| *key == parameter.name) {
            None => Ok(None),
            Some((_, text)) => parse(text).map(Some).ok_or_else(|| parameter.bad(text)),
        }
    }

    fn missing(&self, parameter: &Parameter) -> BadArrivals {
        BadArrivals::Missing {
            process: self.process,
            parameter: parameter.name,
            allowed: parameter.allowed.to_string(),
        }
    }
}

const UNITS: [(&str, f64); 6] = [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// A time such as `300ms`, `1.5s` or `24h`, to the nearest nanosecond.
fn parse_time(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(unit_at);
    let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let nanos = (number.parse::<f64>().ok()? * nanos).round();
    (nanos < 1e18).then(|| Duration::from_nanos(nanos as u64))
}

/// The text that [`parse_time`] reads as `time`, up to [`TIME_MAX`]: in seconds, or the largest unit below if it is shorter.
pub(super) fn time_text(time: Duration) -> String {
    let nanos = time.as_nanos() as f64;
    let (unit, size) = UNITS[..4].iter().rev().find(|(_, size)| nanos >= *size).unwrap_or(&UNITS[3]);
    format!("{}{unit}", nanos / size)
}
