//! "What if it breaks?": whole clusters in virtual time. Each file is one sentence.
mod a_seed_repeats;
mod a_short_deadline_does_not_keep_nodes_apart;
mod planted_bugs_are_found;
mod whatever_breaks_heals;

mod faults;
