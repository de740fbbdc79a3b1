//! The node's line to the coordinators: joins, follows the state, reports, and learns who serves.
//!
//! With every coordinator gone it keeps trying, and the node goes on with what it knows.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use weir_core::ids::{LogIndex, ModelRef, ReplicaId};
use weir_core::placement::{DeviceLoad, NodeReport, REPORT_EVERY};
use weir_core::profile::Profile;
use weir_core::replicated::{Node, State};
use weir_host::dial::{Entered, Role, enter, remote_text};
use weir_host::limits::Limits;
use weir_schema::control_capnp::{leader, node_home, report_result, routing, watch_result, write_result};
use weir_schema::convert::asked::read_asked;
use weir_schema::convert::control::{read_applied, read_change, read_state, write_node, write_u128};
use weir_schema::convert::report::{read_profile, write_report};
use weir_schema::predict_capnp::Purpose;

use crate::Shared;
use crate::actors::assignment::Replicas;
use crate::table::{Routing, Table};

/// How long a watch waits for a change.
const WATCH: Duration = Duration::from_secs(10);
/// A call to a coordinator that takes longer is taken to be lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// The line.
pub struct Link {
    shared: Arc<Shared>,
    replicas: Rc<Replicas>,
    me: Node,
    state: RefCell<State>,
    routing: RefCell<Routing>,
    /// What this leader was told of rows that are wanted run.
    told: RefCell<BTreeMap<ModelRef, u64>>,
    coordinators: RefCell<Vec<String>>,
    joined: tokio::sync::watch::Sender<bool>,
}

/// Why a line ended: where to try next.
enum Next {
    Leader(String),
    Another(String),
}

impl Link {
    /// A line that is not up yet.
    pub fn new(shared: Arc<Shared>, replicas: Rc<Replicas>, me: Node, coordinators: Vec<String>) -> Rc<Link> {
        Rc::new(Link {
            shared,
            replicas,
            me,
            state: RefCell::default(),
            routing: RefCell::default(),
            told: RefCell::default(),
            coordinators: RefCell::new(coordinators),
            joined: tokio::sync::watch::channel(false).0,
        })
    }

    /// Whether the node has joined, once.
    pub fn joined(&self) -> tokio::sync::watch::Receiver<bool> {
        self.joined.subscribe()
    }

    /// Keeps the line up for ever.
    pub async fn run(self: Rc<Self>) {
        let mut turn = 0;
        let mut leader: Option<String> = None;
        loop {
            let address = leader.take().unwrap_or_else(|| {
                let known = self.coordinators.borrow();
                turn += 1;
                known[turn % known.len()].clone()
            });
            match self.once(&address).await {
                Next::Leader(next) if next != address => leader = Some(next),
                Next::Leader(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                Next::Another(why) => {
                    tracing::debug!(address, why, "no line to a coordinator");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            self.replicas.set_coordinator(None);
        }
    }

    async fn once(&self, address: &str) -> Next {
        let another = |why: String| Next::Another(why);
        let entered =
            match enter(&self.shared.host, address, &self.shared.token, Purpose::Member, &Limits::members()).await {
                Ok(entered) => entered,
                Err(error) => return another(error.to_string()),
            };
        let home = match home_of(&entered) {
            Ok(home) => Rc::new(home),
            Err(why) => return another(why),
        };
        if let Err(next) = self.join(&home).await {
            return next;
        }
        if let Err(why) = self.read_state(&home).await {
            return another(why);
        }
        self.replicas.set_coordinator(Some(Rc::clone(&home)));
        // Whoever leads may know nothing.
        self.told.borrow_mut().clear();
        self.joined.send_replace(true);
        tokio::select! {
            biased;
            next = self.report_for_ever(&home) => next,
            why = self.watch_for_ever(&home) => another(why),
            () = entered.closed() => another("the connection ended".into()),
        }
    }

    async fn join(&self, home: &node_home::Client) -> Result<(), Next> {
        let mut call = home.join_request();
        write_u128(call.get().init_request(), self.shared.host.random.u128());
        write_node(call.get().init_node(), &self.me);
        let answer = tokio::time::timeout(Duration::from_secs(6), call.send().promise).await;
        let answer = answer
            .map_err(|_| Next::Another("no answer".into()))?
            .map_err(|error| Next::Another(remote_text(&error)))?;
        let read = || -> Result<Result<(), Next>, capnp::Error> {
            Ok(match answer.get()?.get_result()?.which()? {
                write_result::Applied(applied) => match read_applied(applied?) {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(refusal)) => Err(Next::Another(refusal.to_string())),
                    Err(bad) => Err(Next::Another(bad.to_string())),
                },
                write_result::NotLeader(leader) => Err(to_leader(leader?)?),
                write_result::TryAgain(why) => Err(Next::Another(why?.to_str()?.to_owned())),
            })
        };
        read().map_err(|error| Next::Another(error.to_string()))?
    }

    async fn read_state(&self, home: &node_home::Client) -> Result<(), String> {
        let answer = tokio::time::timeout(PATIENCE, home.state_request().send().promise).await;
        let answer = answer.map_err(|_| "no answer")?.map_err(|error| remote_text(&error))?;
        let state = answer.get().and_then(|r| r.get_state()).map_err(|e| e.to_string())?;
        let state = read_state(state).map_err(|bad| bad.to_string())?;
        if state.plan.epoch < self.replicas.epoch() {
            return Err("this coordinator is behind what the node has seen".into());
        }
        *self.state.borrow_mut() = state;
        self.on_state();
        Ok(())
    }

    async fn watch_for_ever(&self, home: &node_home::Client) -> String {
        loop {
            let since = self.state.borrow().applied;
            if let Err(why) = self.watch_once(home, since).await {
                return why;
            }
        }
    }

    async fn watch_once(&self, home: &node_home::Client, since: LogIndex) -> Result<(), String> {
        let mut call = home.watch_request();
        call.get().set_since(since.0);
        call.get().set_wait_us(WATCH.as_micros() as u64);
        let answer = tokio::time::timeout(WATCH + PATIENCE, call.send().promise).await;
        let answer = answer.map_err(|_| "no answer")?.map_err(|error| remote_text(&error))?;
        let result = answer.get().and_then(|r| r.get_changes()).map_err(|e| e.to_string())?;
        let changes = match result.which() {
            Ok(watch_result::Changes(Ok(changes))) => changes,
            Ok(watch_result::TooOld(_)) => return self.read_state(home).await,
            _ => return Err("a watch answers nonsense".into()),
        };
        let mut changed = false;
        {
            let mut state = self.state.borrow_mut();
            for change in changes {
                let (_, change) = read_change(change).map_err(|bad| bad.to_string())?;
                if let Some(change) = change {
                    state.absorb(&change);
                    changed = true;
                }
            }
            state.applied = state.applied.max(LogIndex(result.get_index()));
        }
        if changed {
            self.on_state();
        }
        Ok(())
    }

    async fn report_for_ever(&self, home: &node_home::Client) -> Next {
        loop {
            match self.report(home).await {
                Ok(()) => {}
                Err(next) => return next,
            }
            // Something to tell at once: a replica that became ready.
            let _ = tokio::time::timeout(REPORT_EVERY, self.shared.rebuild_needed.notified()).await;
        }
    }

    async fn report(&self, home: &node_home::Client) -> Result<(), Next> {
        let mut call = home.report_request();
        let mut b = call.get().init_report();
        let report = self.own_report();
        write_report(b.reborrow(), &report);
        {
            let routing = self.routing.borrow();
            b.set_known_term(routing.term);
            b.set_known_routing(routing.counter);
        }
        let answer = tokio::time::timeout(PATIENCE, call.send().promise).await;
        let answer = answer
            .map_err(|_| Next::Another("no answer".into()))?
            .map_err(|error| Next::Another(remote_text(&error)))?;
        let read = || -> Result<Result<(), Next>, capnp::Error> {
            Ok(match answer.get()?.get_result()?.which()? {
                report_result::Unchanged(()) => Ok(self.on_others(answer.get()?.get_result()?)?),
                report_result::Routing(r) => {
                    self.on_routing(r?)?;
                    Ok(self.on_others(answer.get()?.get_result()?)?)
                }
                report_result::NotLeader(leader) => Err(to_leader(leader?)?),
                report_result::UnknownNode(()) => Err(Next::Another("this node was removed; joining again".into())),
            })
        };
        read().map_err(|error| Next::Another(error.to_string()))??;
        self.told.borrow_mut().extend(report.wanted);
        Ok(())
    }

    fn own_report(&self) -> NodeReport {
        let devices = self.shared.devices.values().map(|device| {
            let load = device.load();
            DeviceLoad {
                device: device.name().clone(),
                busy: load.busy,
                queued: load.queued as u32,
                backlog: load.backlog,
            }
        });
        let mut asked = self.shared.asked();
        // Who is not named is asked nothing.
        asked.retain(|_, asked| !asked.soft.is_empty());
        NodeReport {
            node: self.shared.name.clone(),
            incarnation: self.shared.incarnation,
            epoch: self.replicas.epoch(),
            replicas: self.replicas.report(),
            devices: devices.collect(),
            endpoints: self.shared.ledger.loads(self.shared.host.clock.now()),
            up: self.shared.host.clock.now().since(weir_core::units::Instant::ZERO),
            draining: self.shared.is_draining(),
            asked,
            wanted: self.shared.wanted.since(&self.told.borrow()),
            memory: self.shared.devices.memory.now(),
        }
    }

    /// The leader tells what homes of other nodes ask of the models that stand here.
    fn on_others(&self, r: report_result::Reader<'_>) -> Result<(), capnp::Error> {
        let others =
            read_asked(r.get_curves()?, r.get_others()?).map_err(|bad| capnp::Error::failed(bad.to_string()))?;
        let (now, state) = (self.shared.host.clock.now(), self.state.borrow());
        for device in &self.me.devices {
            let share = |model: &ModelRef| f64::from(device.slots) / f64::from(hosts(&state, model).max(device.slots));
            if let Some(known) = self.shared.devices.get(&device.name) {
                known.on_others(now, &others, share);
            }
        }
        Ok(())
    }

    fn on_routing(&self, r: routing::Reader<'_>) -> Result<(), capnp::Error> {
        let mut routing = self.routing.borrow_mut();
        if (r.get_term(), r.get_counter()) < (routing.term, routing.counter) {
            return Ok(());
        }
        let mut profiles: BTreeMap<ReplicaId, Profile> = BTreeMap::new();
        for ready in r.get_profiles()? {
            let profile = read_profile(ready.get_profile()?).map_err(|bad| capnp::Error::failed(bad.to_string()))?;
            profiles.insert(ReplicaId(ready.get_replica()), Profile::new(&profile.points));
        }
        *routing = Routing {
            term: r.get_term(),
            counter: r.get_counter(),
            ready: r.get_ready()?.iter().map(ReplicaId).collect(),
            profiles,
        };
        drop(routing);
        self.rebuild();
        Ok(())
    }

    fn on_state(&self) {
        let state = self.state.borrow();
        let addresses: Vec<String> = state.members.values().map(|member| member.address.clone()).collect();
        if !addresses.is_empty() {
            let mut known = self.coordinators.borrow_mut();
            for address in addresses {
                if !known.contains(&address) {
                    known.push(address);
                }
            }
        }
        self.rebuild();
        self.replicas.follow(&state);
    }

    fn rebuild(&self) {
        let table = Table::new(&self.shared.name, &self.state.borrow(), &self.routing.borrow());
        table.learn(&self.shared.table.load());
        self.shared.table.store(Arc::new(table));
    }
}

/// Slots of all devices where a model stands.
fn hosts(state: &State, model: &ModelRef) -> u32 {
    let of_model = state.plan.assignments.values().filter(|assignment| assignment.model == *model);
    let places: BTreeSet<_> = of_model.map(|assignment| (&assignment.node, &assignment.device)).collect();
    let slots = places.into_iter().filter_map(|(node, device)| {
        state.nodes.get(node)?.devices.iter().find(|known| known.name == *device).map(|device| device.slots)
    });
    slots.sum()
}

fn to_leader(leader: leader::Reader<'_>) -> Result<Next, capnp::Error> {
    let address = leader.get_address()?.to_str()?.to_owned();
    Ok(if address.is_empty() { Next::Another("there is no leader now".into()) } else { Next::Leader(address) })
}

fn home_of(entered: &Entered) -> Result<node_home::Client, String> {
    match entered.role() {
        Role::NodeHome(home) => Ok(home.clone()),
        _ => Err("the token does not make a node".into()),
    }
}
