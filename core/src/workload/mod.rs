//! When queries arrive: pure, seeded processes, shared by the load generator and the simulator.
//!
//! The intuition: two servers under the same mean rate can behave as differently as night and day, because queues feel
//! how arrivals clump, at every width of window from a batch's milliseconds to a minute. So there is a process for each
//! way of clumping, each with a known theory, and an instrument that measures the same figures on any list of instants.
//!
//! The contract, in the order of the calls:
//!
//! 1. [`Arrivals::parse`] reads a specification such as `gamma:cv=4`; [`Arrivals::to_text`] is its inverse.
//! 2. [`Arrivals::needs_rate`] and [`Arrivals::trace_file`] say what else it takes: a [`Rate`], or the text of a file,
//!    which the caller reads and [`Trace::parse`] understands.
//! 3. [`Arrivals::process`] joins them to a [`Process`], or says what is missing.
//! 4. [`Process::instants`] draws from a [`crate::prng::Prng`]. The same seed gives the same instants on any machine: draws use
//!    integers and what IEEE 754 fixes to the last bit ([`crate::prng::elementary`]).
//! 5. [`Superposition`] merges several of them; [`Statistics::of`], [`GammaFit::of`] and [`Mmpp::fit`] look at instants, and
//!    [`Mmpp::misfit`] says where a fit is not what was seen; [`resampled`] draws another recording from one.
//!
//! Every process but a trace is stationary or starts at a stated phase: no run-up has to be thrown away, and the expected
//! count of a run is its rate times its length from the first second on.

mod arrivals;
mod diurnal;
mod fit;
mod mmpp;
mod modulated;
mod parameter;
mod pareto;
mod process;
mod rate;
mod renewal;
mod replay;
mod resample;
mod spike;
mod statistics;
mod superposition;
#[cfg(test)]
mod tests;
mod trace;

pub use arrivals::{Arrivals, BadArrivals};
pub use diurnal::Diurnal;
pub use fit::{GammaFit, Misfit, NoFit};
pub use mmpp::Mmpp;
pub use pareto::Pareto;
pub use process::{BadProcess, Instants, Process};
pub use rate::{BadRate, Rate};
pub use replay::Replay;
pub use resample::resampled;
pub use spike::Spike;
pub use statistics::{Statistics, Window};
pub use superposition::Superposition;
pub use trace::{BadTrace, Request, Tokens, Trace};
