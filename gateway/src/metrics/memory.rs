//! Memory for models, and what is in it where not all of them fit.

use std::fmt::Error;

use prometheus_client::encoding::DescriptorEncoder;
use weir_core::history::NodeFacts;
use weir_core::paging::{Paged, Residence};

use super::{Labels, counter, gauge};

pub(super) fn memory(to: &mut DescriptorEncoder<'_>, facts: &NodeFacts) -> Result<(), Error> {
    let memory = &facts.memory;
    let one = |value: f64| [(Labels::new(), value)];
    gauge(to, "weir_memory_bytes", "Memory for models", one(memory.size.0 as f64))?;
    gauge(to, "weir_memory_taken_bytes", "Memory that models take", one(memory.taken.0 as f64))?;
    let help =
        "Memory that all models which are placed here would take; more than there is: they are in memory on demand";
    gauge(to, "weir_memory_placed_bytes", help, one(memory.placed.0 as f64))?;
    let help = "Share of the last ten seconds that models which had been in memory before were loaded in";
    gauge(to, "weir_memory_reloading", help, one(memory.reloading))?;
    let help = "Whether the node does little else than load models";
    gauge(to, "weir_memory_thrashing", help, one(f64::from(u8::from(memory.thrashes))))?;
    let help = "Times that the node began to do little else than load models";
    counter(to, "weir_memory_thrashings", help, one(memory.thrashings as f64))?;
    let names: Vec<String> = facts.paged.keys().map(ToString::to_string).collect();
    let of = |value: fn(&Paged) -> f64| {
        let pages = names.iter().zip(facts.paged.values());
        pages.map(move |(model, paged)| (vec![("model", model.as_str())], value(paged)))
    };
    let resident = |paged: &Paged| f64::from(u8::from(paged.residence == Residence::Resident));
    gauge(to, "weir_model_resident", "Where not all models fit: whether this one is in memory", of(resident))?;
    let help = "Where not all models fit: what a load of this one takes";
    gauge(to, "weir_model_reload_seconds", help, of(|paged| paged.reload.as_secs_f64()))?;
    let help = "Queries that found their model out of memory";
    counter(to, "weir_model_cold_queries", help, of(|paged| paged.cold as f64))?;
    counter(to, "weir_model_loads", "Loads of a model, where not all fit", of(|paged| paged.loads as f64))?;
    let help = "Times that a model was put out of memory for another";
    counter(to, "weir_model_evictions", help, of(|paged| paged.evictions as f64))
}
