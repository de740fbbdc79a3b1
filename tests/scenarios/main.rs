//! "What if it breaks?": whole clusters in virtual time. Each file is one sentence.
mod a_full_disk_refuses_writes_and_takes_them_again;
mod a_learner_that_is_not_there_never_votes;
mod a_member_is_replaced;
mod a_member_leaves;
mod a_member_that_is_interrupted_while_it_joins_goes_on;
mod a_node_that_starts_later_is_informed;
mod a_retried_removal_has_its_first_answer;
mod a_saved_snapshot_is_not_stale;
mod a_seed_repeats;
mod a_short_deadline_does_not_keep_nodes_apart;
mod a_version_is_rolled_back;
mod audits_that_tell_nothing_are_not_made;
mod planted_bugs_are_found;
mod whatever_breaks_heals;

mod faults;
