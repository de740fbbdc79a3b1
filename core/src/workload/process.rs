//! A process that has all it needs to draw instants.

use std::time::Duration;

use crate::prng::Prng;
use crate::units::Instant;

use super::arrivals::{Arrivals, BadArrivals};
use super::diurnal::{Diurnal, Thinned};
use super::mmpp::{Mmpp, MmppSteps};
use super::modulated::Modulated;
use super::pareto::{Pareto, ParetoSteps};
use super::rate::{BadRate, Rate};
use super::renewal::{Gaps, Renewal};
use super::replay::{Cut, Replayed};
use super::spike::{Spike, SpikeSteps};
use super::trace::Trace;

/// Why a specification makes no process.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BadProcess {
    #[error(transparent)]
    Arrivals(#[from] BadArrivals),
    #[error("{process} arrivals need a rate; give queries a second")]
    NeedsRate { process: &'static str },
    #[error("the trace {file} has to be read first")]
    NeedsTrace { file: String },
    #[error("the trace has no request from {from:?} on for {length:?}; its last one comes at {end:?}")]
    NothingInCut { from: Duration, length: Duration, end: Duration },
    #[error("the trace has no model {model:?}; it has {models}")]
    NoSuchModel { model: String, models: String },
    #[error("the cut of the trace has all its requests at one instant, hence no rate; give it a scale instead")]
    NoRateOfItsOwn,
    #[error("scaled to that rate, {parameter} of {process} would be too high")]
    TooFast {
        process: &'static str,
        parameter: &'static str,
        #[source]
        cause: BadRate,
    },
    #[error("the trace would have to be scaled by {scale} to have that rate; at most {max} is allowed, try speed")]
    Scale { scale: f64, max: f64 },
}

/// An arrival process with its rate and its trace.
#[derive(Clone, Debug)]
pub struct Process(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Renewal(Gaps, Rate),
    Mmpp(Mmpp),
    Pareto(Pareto, Rate),
    Spike(Spike),
    Diurnal(Diurnal),
    Replay(Cut),
}

impl Process {
    /// `arrivals` were checked.
    pub(super) fn new(arrivals: &Arrivals, rate: Option<Rate>, trace: Option<&Trace>) -> Result<Process, BadProcess> {
        let process = arrivals.name();
        let given = rate.ok_or(BadProcess::NeedsRate { process });
        let too_fast = |(parameter, cause)| BadProcess::TooFast { process, parameter, cause };
        let kind = match arrivals {
            Arrivals::Constant => Kind::Renewal(Gaps::Equal, given?),
            Arrivals::Poisson => Kind::Renewal(Gaps::Exponential, given?),
            Arrivals::Gamma { cv } => Kind::Renewal(Gaps::Gamma { shape: 1.0 / (cv * cv) }, given?),
            Arrivals::Pareto(pareto) => Kind::Pareto(pareto.clone(), given?),
            Arrivals::Mmpp(mmpp) => Kind::Mmpp(mmpp.scaled_to(rate).map_err(too_fast)?),
            Arrivals::Spike(spike) => Kind::Spike(spike.scaled_to(rate).map_err(too_fast)?),
            Arrivals::Diurnal(diurnal) => Kind::Diurnal(diurnal.scaled_to(rate).map_err(too_fast)?),
            Arrivals::Trace(replay) => {
                let trace = trace.ok_or_else(|| BadProcess::NeedsTrace { file: replay.file.clone() })?;
                Kind::Replay(Cut::new(replay, rate, trace)?)
            }
        };
        Ok(Process(kind))
    }

    /// Mean rate: of an endless run, or of the cut of a trace. None where all of a trace comes at one instant.
    pub fn rate(&self) -> Option<Rate> {
        let per_second = match &self.0 {
            Kind::Renewal(_, rate) | Kind::Pareto(_, rate) => return Some(*rate),
            Kind::Mmpp(mmpp) => mmpp.rate(),
            Kind::Spike(spike) => spike.rate(),
            Kind::Diurnal(diurnal) => diurnal.rate(),
            Kind::Replay(cut) => cut.rate()?,
        };
        Rate::per_second(per_second).ok()
    }

    /// How long it goes on, where it ends.
    pub fn length(&self) -> Option<Duration> {
        match &self.0 {
            Kind::Replay(cut) => Some(cut.length()),
            _ => None,
        }
    }

    /// Instants in order, from zero on; without end but for a trace. Several may be equal.
    pub fn instants(&self, prng: Prng) -> Instants {
        Instants(match &self.0 {
            Kind::Renewal(gaps, rate) => Draw::Renewal(Renewal::new(*gaps, *rate, prng)),
            Kind::Mmpp(mmpp) => Draw::Mmpp(Modulated::new(MmppSteps::new(mmpp), prng)),
            Kind::Pareto(pareto, rate) => Draw::pareto(pareto, *rate, prng),
            Kind::Spike(spike) => Draw::Spike(Modulated::new(SpikeSteps::new(spike), prng)),
            Kind::Diurnal(diurnal) => Draw::Diurnal(Thinned::new(diurnal, prng)),
            Kind::Replay(cut) => Draw::Replay(Replayed::new(cut, prng)),
        })
    }
}

/// The instants of a [`Process`], in order.
#[derive(Clone, Debug)]
pub struct Instants(Draw);

#[derive(Clone, Debug)]
enum Draw {
    Renewal(Renewal),
    Mmpp(Modulated<MmppSteps>),
    Pareto(Modulated<ParetoSteps>),
    Spike(Modulated<SpikeSteps>),
    Diurnal(Thinned),
    Replay(Replayed),
}

impl Draw {
    fn pareto(pareto: &Pareto, rate: Rate, mut prng: Prng) -> Draw {
        let steps = ParetoSteps::new(pareto, rate, &mut prng);
        Draw::Pareto(Modulated::new(steps, prng))
    }
}

impl Iterator for Instants {
    type Item = Instant;

    fn next(&mut self) -> Option<Instant> {
        match &mut self.0 {
            Draw::Renewal(draw) => draw.next(),
            Draw::Mmpp(draw) => draw.next(),
            Draw::Pareto(draw) => draw.next(),
            Draw::Spike(draw) => draw.next(),
            Draw::Diurnal(draw) => draw.next(),
            Draw::Replay(draw) => draw.next(),
        }
    }
}
