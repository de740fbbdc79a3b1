//! An arrival process as its user writes it, apart from what it is given at the time of use: a rate, a trace.

use std::fmt;

use super::diurnal::Diurnal;
use super::mmpp::Mmpp;
use super::parameter::{Allowed, Parameter, Values};
use super::pareto::Pareto;
use super::process::{BadProcess, Process};
use super::rate::Rate;
use super::replay::Replay;
use super::spike::Spike;
use super::trace::Trace;

/// A specification of an arrival process.
///
/// Rates inside are queries a second. Where a process has a rate of its own and is given another, its intensity is
/// scaled to that mean and its times stay.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Equal gaps.
    Constant,
    /// Exponential gaps: what many independent callers make. CV 1, index of dispersion 1 in every window.
    Poisson,
    /// Gamma distributed gaps with this coefficient of variation: above 1 they come in bursts.
    Gamma {
        /// Standard deviation of a gap over its mean.
        cv: f64,
    },
    /// A Poisson process that is now slow, now fast, for exponential times.
    Mmpp(Mmpp),
    /// Bursts at every time scale: sources that are on and off for Pareto times.
    Pareto(Pareto),
    /// A steady Poisson process with one step up and down.
    Spike(Spike),
    /// A Poisson process whose rate swings like the hours of a day.
    Diurnal(Diurnal),
    /// The requests of a recorded trace.
    Trace(Replay),
}

/// A specification that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BadArrivals {
    #[error("{name:?} is no arrival process; write one of {}", EXAMPLES.join(" "))]
    Unknown { name: String },
    #[error("{process} needs {parameter}, {allowed}; write for example {}", example(process))]
    Missing { process: &'static str, parameter: &'static str, allowed: String },
    #[error("{process} has no parameter {parameter:?}; it has {known}")]
    UnknownParameter { process: &'static str, parameter: String, known: String },
    #[error("{process} has {parameter} twice; give it once")]
    Repeated { process: &'static str, parameter: String },
    #[error("{parameter} of {process} cannot be {text:?}; give {allowed}")]
    Value { process: &'static str, parameter: &'static str, text: String, allowed: String },
    #[error("{parameter} of {process} is below {floor}; give at least as much")]
    Order { process: &'static str, parameter: &'static str, floor: &'static str },
    #[error("trace needs a file whose name has no comma, as in trace:azure.csv,speed=2")]
    File,
}

/// One of each, for who has to write one.
const EXAMPLES: [&str; 8] = [
    "constant",
    "poisson",
    "gamma:cv=4",
    "mmpp:low=100,high=900,mean_low=2s,mean_high=300ms",
    "pareto:alpha=1.5",
    "spike:base=200,peak=1200,at=5s,for=2s",
    "diurnal:min=50,max=500,period=60s",
    "trace:FILE,scale=2,speed=10,from=60s,length=30s",
];

fn example(process: &str) -> &'static str {
    EXAMPLES.iter().find(|example| example.starts_with(process)).copied().unwrap_or_default()
}

const CV: Parameter = Parameter { process: "gamma", name: "cv", allowed: Allowed::Between(0.001, 100.0) };

impl Arrivals {
    /// Parses a specification.
    pub fn parse(text: &str) -> Result<Arrivals, BadArrivals> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let arrivals = match name {
            "constant" => Values::read("constant", rest, &[]).map(|_| Arrivals::Constant)?,
            "poisson" => Values::read("poisson", rest, &[]).map(|_| Arrivals::Poisson)?,
            "gamma" => Arrivals::Gamma { cv: Values::read("gamma", rest, &[CV])?.needed_number(&CV)? },
            "mmpp" => Arrivals::Mmpp(Mmpp::read(rest)?),
            "pareto" => Arrivals::Pareto(Pareto::read(rest)?),
            "spike" => Arrivals::Spike(Spike::read(rest)?),
            "diurnal" => Arrivals::Diurnal(Diurnal::read(rest)?),
            "trace" => Arrivals::Trace(Replay::read(rest)?),
            _ => return Err(BadArrivals::Unknown { name: name.to_owned() }),
        };
        arrivals.check()?;
        Ok(arrivals)
    }

    /// The text that parses to this.
    pub fn to_text(&self) -> String {
        self.to_string()
    }

    /// Whether a rate has to be given. Any other process has one of its own, to which a rate that is given is preferred.
    pub fn needs_rate(&self) -> bool {
        match self {
            Arrivals::Constant | Arrivals::Poisson | Arrivals::Gamma { .. } | Arrivals::Pareto(_) => true,
            Arrivals::Mmpp(_) | Arrivals::Spike(_) | Arrivals::Diurnal(_) | Arrivals::Trace(_) => false,
        }
    }

    /// The file that the caller has to read, unpack and hand to [`Trace::parse`].
    pub fn trace_file(&self) -> Option<&str> {
        match self {
            Arrivals::Trace(replay) => Some(&replay.file),
            _ => None,
        }
    }

    /// Joins this with its mean rate and its trace. A trace that is not needed is not looked at.
    pub fn process(&self, rate: Option<Rate>, trace: Option<&Trace>) -> Result<Process, BadProcess> {
        self.check()?;
        Process::new(self, rate, trace)
    }

    /// The name by which it is written.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Arrivals::Constant => "constant",
            Arrivals::Poisson => "poisson",
            Arrivals::Gamma { .. } => "gamma",
            Arrivals::Mmpp(_) => "mmpp",
            Arrivals::Pareto(_) => "pareto",
            Arrivals::Spike(_) => "spike",
            Arrivals::Diurnal(_) => "diurnal",
            Arrivals::Trace(_) => "trace",
        }
    }

    fn check(&self) -> Result<(), BadArrivals> {
        match self {
            Arrivals::Constant | Arrivals::Poisson => Ok(()),
            Arrivals::Gamma { cv } => CV.check(*cv),
            Arrivals::Mmpp(mmpp) => mmpp.check(),
            Arrivals::Pareto(pareto) => pareto.check(),
            Arrivals::Spike(spike) => spike.check(),
            Arrivals::Diurnal(diurnal) => diurnal.check(),
            Arrivals::Trace(replay) => replay.check(),
        }
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Arrivals::Constant | Arrivals::Poisson => Ok(()),
            Arrivals::Gamma { cv } => write!(f, ":cv={cv}"),
            Arrivals::Mmpp(mmpp) => write!(f, ":{mmpp}"),
            Arrivals::Pareto(pareto) => write!(f, ":{pareto}"),
            Arrivals::Spike(spike) => write!(f, ":{spike}"),
            Arrivals::Diurnal(diurnal) => write!(f, ":{diurnal}"),
            Arrivals::Trace(replay) => write!(f, ":{replay}"),
        }
    }
}
