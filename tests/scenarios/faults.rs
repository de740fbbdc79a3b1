//! A run of a cluster in which whatever a seed says breaks, and everything heals.

use std::time::Duration;

use weir_core::outcome::Outcome;
use weir_core::replicated::Command;
use weir_tests::history::Seen;
use weir_tests::simulated::{Cluster, Lies, Operating, Wrong, ask, endpoint};

/// What is wrong on purpose, so that the checks are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    Nothing,
    /// Reads are answered by any member from what it knows.
    StaleReads,
    /// A client sends a write again under a new request id.
    RetriesUnderNewIds,
    /// Disks of coordinators lose log, votes and all that was synced.
    LostSyncs,
    /// Disks of coordinators lose the names of files that were synced.
    LostNames,
    /// A watch leaves one change out.
    SkippedChange,
}

/// How long things break.
const FAULTS_FOR: Duration = Duration::from_secs(12);
/// How soon a healed cluster writes and predicts.
const HEALED_WITHIN: Duration = Duration::from_secs(5);
/// How soon a member that was replaced knows what the others know: it asks each second to be let in.
const JOINED_WITHIN: Duration = Duration::from_secs(15);

/// A fault that goes on.
enum Fault {
    Crashed(String),
    Silent(String, String),
    Cut(String, String),
    Full(String),
    /// It is removed, and joins anew with an empty disk.
    Replaced(String),
}

/// Runs a seed: what was seen, or what is wrong and what had been done.
pub fn run(seed: u64, planted: Planted) -> Result<Seen, String> {
    let mut cluster = Cluster::start(seed, 3, 2).map_err(|wrong| wrong.0)?;
    let result = break_and_heal(&mut cluster, planted);
    let seen = cluster.history.seen();
    result.map_err(|wrong| format!("{}\n{}", wrong.0, seen.notes.join("\n")))?;
    Ok(seen)
}

/// Runs a seed that must hold; a panic says how to repeat it.
pub fn holds(seed: u64) -> Seen {
    run(seed, Planted::Nothing).unwrap_or_else(|wrong| {
        panic!("seed {seed}: {wrong}\nrepeat it: WEIR_SEED={seed} cargo test -p weir-tests --test scenarios whatever")
    })
}

fn break_and_heal(cluster: &mut Cluster, planted: Planted) -> Result<(), Wrong> {
    let lies = Lies { about_files: planted == Planted::LostSyncs, about_folders: planted == Planted::LostNames };
    for name in &cluster.coordinators {
        cluster.disk(name).lie(lies);
    }
    let how = match planted {
        Planted::StaleReads => Operating::ReadsWhatAnyMemberKnows,
        Planted::RetriesUnderNewIds => Operating::RetriesUnderNewIds,
        _ => Operating::Properly,
    };
    for i in 1..=3 {
        cluster.beside(&format!("operator{i}"), |world| world.operate(how));
    }
    cluster.beside("asker1", |world| world.predict());
    cluster.beside("asker2", |world| world.predict());
    cluster.beside("prober", |world| world.probe());
    let skip = (planted == Planted::SkippedChange).then(|| 20 + cluster.prng.below(40) as usize);
    cluster.beside("watcher", move |world| world.watch(skip));
    cluster.beside("changer", |world| world.add_and_remove_a_learner());

    let over = cluster.now() + FAULTS_FOR;
    let mut going_on: Vec<(Duration, Fault)> = Vec::new();
    let mut replaced = false;
    let mut next = cluster.now();
    while cluster.now() < over {
        let now = cluster.now();
        let (ended, rest) = going_on.into_iter().partition(|(until, _)| *until <= now);
        going_on = rest;
        end(cluster, ended);
        if now >= next {
            let lasts = Duration::from_millis(100 + cluster.prng.below(4_000));
            let fault = begin(cluster, &going_on, replaced);
            replaced |= matches!(fault, Some(Fault::Replaced(_)));
            going_on.extend(fault.map(|fault| (now + lasts, fault)));
            next = now + Duration::from_millis(100 + cluster.prng.below(1_500));
        }
        cluster.run(Duration::from_millis(10))?;
    }
    end(cluster, going_on);
    cluster.note("everything is healed");
    check_alive(cluster)?;
    converge(cluster)?;
    let seen = cluster.history.seen();
    seen.check()?;
    seen.check_watch()?;
    Ok(())
}

/// One more fault, where one fits to those that go on. One disk of three may be lost, and no second one before the group
/// is whole again: one in a run.
fn begin(cluster: &mut Cluster, going_on: &[(Duration, Fault)], replaced: bool) -> Option<Fault> {
    let any = |cluster: &mut Cluster, of: &[String]| {
        let i = cluster.prng.below(of.len() as u64) as usize;
        of[i].clone()
    };
    let coordinators = cluster.coordinators.clone();
    let all: Vec<String> = coordinators.iter().chain(&cluster.nodes).cloned().collect();
    let crashed = |name: &str| {
        let down = |fault: &Fault| matches!(fault, Fault::Crashed(known) | Fault::Replaced(known) if known == name);
        going_on.iter().any(|(_, fault)| down(fault))
    };
    let linked = |a: &str, b: &str| {
        going_on.iter().any(|(_, fault)| match fault {
            Fault::Silent(x, y) | Fault::Cut(x, y) => (x == a && y == b) || (x == b && y == a),
            Fault::Crashed(_) | Fault::Full(_) | Fault::Replaced(_) => false,
        })
    };
    match cluster.prng.below(11) {
        0..=2 => {
            let name = any(cluster, &coordinators);
            (!crashed(&name)).then(|| {
                cluster.crash(&name);
                Fault::Crashed(name)
            })
        }
        3 => {
            let nodes = cluster.nodes.clone();
            let name = any(cluster, &nodes);
            (!crashed(&name)).then(|| {
                cluster.crash(&name);
                Fault::Crashed(name)
            })
        }
        4 => {
            let name = any(cluster, &coordinators);
            cluster.note(format!("the disk of {name} is full"));
            let room = cluster.prng.below(4096) as usize;
            cluster.disk(&name).leave_room(Some(room));
            Some(Fault::Full(name))
        }
        5 => {
            let name = any(cluster, &coordinators);
            (!crashed(&name) && !replaced).then(|| {
                if cluster.prng.below(2) == 0 {
                    cluster.crash(&name);
                }
                cluster.note(format!("{name} is to be removed"));
                let member = name.clone();
                cluster.beside("remover", |world| world.remove(member));
                Fault::Replaced(name)
            })
        }
        kind => {
            let (a, b) = (any(cluster, &all), any(cluster, &all));
            if a == b || linked(&a, &b) {
                return None;
            }
            match kind {
                6 | 7 => {
                    cluster.silence(&a, &b);
                    Some(Fault::Silent(a, b))
                }
                8 => {
                    cluster.cut_one_way(&a, &b);
                    Some(Fault::Cut(a, b))
                }
                _ => {
                    cluster.cut(&a, &b);
                    Some(Fault::Cut(a, b))
                }
            }
        }
    }
}

fn end(cluster: &mut Cluster, faults: Vec<(Duration, Fault)>) {
    for (_, fault) in faults {
        match fault {
            Fault::Crashed(name) => cluster.restart(&name),
            Fault::Replaced(name) => {
                cluster.crash(&name);
                cluster.wipe(&name);
                cluster.restart(&name);
            }
            Fault::Silent(a, b) => cluster.end_silence(&a, &b),
            Fault::Cut(a, b) => cluster.mend(&a, &b),
            Fault::Full(name) => {
                cluster.note(format!("the disk of {name} has room again"));
                cluster.disk(&name).leave_room(None);
            }
        }
    }
}

/// A write and a prediction succeed.
fn check_alive(cluster: &mut Cluster) -> Result<(), Wrong> {
    cluster.errand(HEALED_WITHIN, "a write after everything is healed", |world| async move {
        let admin = world.admin();
        let write = || Command::Apply { models: vec![], endpoints: vec![endpoint("last", 1)], if_index: None };
        while admin.write(write()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    })?;
    cluster.errand(HEALED_WITHIN, "a prediction after everything is healed", |world| async move {
        let client = loop {
            match world.client().await {
                Ok(client) => break client,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        while ask(&client, 1.0, Duration::from_millis(200)).await.outcome != Outcome::Answered {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    })
}

/// Waits until nothing is written any more and every coordinator knows the same.
fn converge(cluster: &mut Cluster) -> Result<(), Wrong> {
    cluster.stop_clients();
    cluster.run(Duration::from_secs(2))?;
    cluster.errand(JOINED_WITHIN, "every coordinator knows the same", |world| async move {
        loop {
            let mut states = Vec::new();
            for admin in world.admin_of_each() {
                states.push(admin.stale_status().await.ok().map(|status| status.state));
            }
            if let Some(Some(state)) = states.first()
                && states.iter().all(|other| other.as_ref() == Some(state))
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}
