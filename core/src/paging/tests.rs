use proptest::prelude::*;

use super::*;

const MB: u64 = 1_000_000;

fn model(i: u64) -> ModelRef {
    ModelRef::parse(&format!("m{i}@1")).unwrap()
}

fn ms(at: u64) -> Instant {
    Instant::from_millis(at)
}

/// A node that does what it is told: files are there where nothing else is said, first loads take 20 ms more than
/// others, memory is free 1 ms after it was asked for.
struct Node {
    paging: Paging,
    now: Instant,
    /// By replica: size, and what a load takes.
    models: BTreeMap<ReplicaId, (u64, Duration)>,
    memory: u64,
    events: BTreeMap<(Instant, u64), Event>,
    numbered: u64,
    stands: BTreeMap<ReplicaId, Stage>,
    loaded: BTreeMap<ReplicaId, u32>,
    /// Replicas with rows that wait or run, until when.
    used: BTreeMap<ReplicaId, Instant>,
    /// When its device can take up what comes.
    free: Instant,
    /// Fails the next so many loads of a replica.
    fails: BTreeMap<ReplicaId, u32>,
    /// What it takes to fetch a file, and which of them fail once more.
    fetch: BTreeMap<ModelRef, Duration>,
    unfetched: BTreeSet<ModelRef>,
    fetching: BTreeSet<ModelRef>,
    files: BTreeSet<ModelRef>,
    /// What became of each row: its model, and how it ended.
    rows: BTreeMap<TicketId, (ReplicaId, Option<End>)>,
    loads: Vec<ReplicaId>,
    evicted: Vec<ReplicaId>,
    /// What was removed or died while it was in memory, and takes that still.
    ending: Vec<ReplicaId>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Fetched(u64),
    Loaded(ReplicaId),
    Missing(ReplicaId),
    Gone(ReplicaId),
    Ended(ReplicaId),
    Wake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Ran(Instant),
    Rejected(Rejection),
    Expired,
    Cancelled,
}

impl Node {
    fn new(memory: u64, models: &[(u64, u64)], keep: Keep) -> Node {
        Node::fetching(memory, models, keep, &[])
    }

    /// Of the models of these numbers the file is not there, and takes so many ms to come.
    fn fetching(memory: u64, models: &[(u64, u64)], keep: Keep, fetch: &[(u64, u64)]) -> Node {
        let mut paging = Paging::new(Bytes(memory), keep);
        let models: BTreeMap<ReplicaId, (u64, Duration)> = models
            .iter()
            .zip(0..)
            .map(|((size, reload), i)| (ReplicaId(i), (*size, Duration::from_millis(*reload))))
            .collect();
        for (id, (size, _)) in &models {
            let here = !fetch.iter().any(|(i, _)| *i == id.0);
            paging.place(Instant::ZERO, *id, &model(id.0), Bytes(*size), here);
        }
        let stands = models.keys().map(|id| (*id, Stage::Out)).collect();
        let fetch: BTreeMap<ModelRef, Duration> =
            fetch.iter().map(|(i, ms)| (model(*i), Duration::from_millis(*ms))).collect();
        let files = models.keys().map(|id| model(id.0)).filter(|model| !fetch.contains_key(model)).collect();
        let mut node = Node {
            paging,
            now: Instant::ZERO,
            models,
            memory,
            events: BTreeMap::new(),
            numbered: 0,
            stands,
            loaded: BTreeMap::new(),
            used: BTreeMap::new(),
            free: Instant::ZERO,
            fails: BTreeMap::new(),
            unfetched: BTreeSet::new(),
            fetching: BTreeSet::new(),
            files,
            fetch,
            rows: BTreeMap::new(),
            loads: Vec::new(),
            evicted: Vec::new(),
            ending: Vec::new(),
        };
        node.tell(|paging, now, in_use, out| paging.on_wake(now, in_use, out));
        node.wait(0);
        node
    }

    /// All in memory that fits, measured.
    fn warm(memory: u64, models: &[(u64, u64)], keep: Keep) -> Node {
        let mut node = Node::new(memory, models, keep);
        node.until(ms(100_000));
        (node.loads, node.evicted) = (Vec::new(), Vec::new());
        node
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.numbered += 1;
        self.events.insert((at, self.numbered), event);
    }

    fn tell<T>(
        &mut self,
        tell: impl FnOnce(&mut Paging, Instant, &dyn Fn(ReplicaId) -> bool, &mut Vec<Action>) -> T,
    ) -> T {
        let (now, mut out) = (self.now, Vec::new());
        let used = self.used.clone();
        let in_use = |id: ReplicaId| used.get(&id).is_some_and(|until| *until > now);
        let told = tell(&mut self.paging, now, &in_use, &mut out);
        for action in out {
            match action {
                Action::Fetch(model) => {
                    assert!(self.fetching.len() < loads::FETCHES_MAX, "so many at once");
                    assert!(self.fetching.insert(model.clone()), "{model} is fetched twice");
                    let takes = self.fetch.get(&model).copied().unwrap_or_default();
                    let number = model.name.as_str()[1..].parse().expect("its number");
                    self.at(now + takes, Event::Fetched(number));
                }
                Action::Load(id) if !self.files.contains(&model(id.0)) => {
                    assert_eq!(self.stands.insert(id, Stage::Loading(now)), Some(Stage::Out), "{id} is loaded twice");
                    self.at(now + Duration::from_millis(1), Event::Missing(id));
                }
                Action::Load(id) => {
                    let loads = self.stands.values().any(|stage| matches!(stage, Stage::Loading(_)));
                    assert!(!self.paging.is_short() || !loads, "one load at a time");
                    assert_eq!(self.stands.insert(id, Stage::Loading(now)), Some(Stage::Out), "{id} is loaded twice");
                    let first = if self.loaded.contains_key(&id) { Duration::ZERO } else { Duration::from_millis(20) };
                    self.loads.push(id);
                    self.at(now + self.models[&id].1 + first, Event::Loaded(id));
                }
                Action::Evict(id) => {
                    assert!(!in_use(id), "{id} is put out while it is used");
                    assert_eq!(self.stands.insert(id, Stage::Leaving), Some(Stage::In), "{id} is not there");
                    self.evicted.push(id);
                    self.at(now + Duration::from_millis(1), Event::Gone(id));
                }
                Action::Run(ticket) => self.end(ticket, End::Ran(now)),
                Action::Reject { ticket, why } => self.end(ticket, End::Rejected(why)),
                Action::Expire(ticket) => self.end(ticket, End::Expired),
                Action::WakeAt(at) => self.at(at, Event::Wake),
            }
        }
        self.check();
        told
    }

    fn check(&self) {
        let held = self.stands.iter().filter(|(_, stage)| **stage != Stage::Out);
        let ending = self.ending.iter().map(|id| self.models[id].0).sum::<u64>();
        let taken: u64 = held.map(|(id, _)| self.models[id].0).sum::<u64>() + ending;
        assert!(taken <= self.memory, "{taken} of {}", self.memory);
    }

    fn end(&mut self, ticket: TicketId, end: End) {
        let (id, ended) = self.rows.get_mut(&ticket).expect("a row that was asked for");
        assert!(ended.is_none(), "{ticket:?} ended as {ended:?} and as {end:?}");
        *ended = Some(end);
        if let End::Ran(at) = end {
            assert_eq!(self.stands[id], Stage::In, "its model is in memory");
            self.used.insert(*id, at + Duration::from_millis(3));
        }
    }

    /// A row that has `left` ms asks for a model; the number of the row.
    fn ask(&mut self, i: u64, left: u64) -> TicketId {
        let ticket = TicketId(self.rows.len() as u64);
        self.rows.insert(ticket, (ReplicaId(i), None));
        let deadline = Deadline(self.now + Duration::from_millis(left));
        let query = Query { ticket, deadline, free: self.free, service: ServiceTime::from_micros(2_000) };
        if self.tell(|paging, now, in_use, out| paging.ask(now, &model(i), &[query], in_use, out)) {
            self.end(ticket, End::Ran(self.now));
        }
        ticket
    }

    fn until(&mut self, until: Instant) {
        while let Some(((at, number), event)) = self.events.first_key_value().map(|(key, event)| (*key, *event)) {
            if at > until {
                break;
            }
            self.events.remove(&(at, number));
            self.now = self.now.max(at);
            match event {
                Event::Fetched(i) => {
                    assert!(self.fetching.remove(&model(i)));
                    if self.unfetched.remove(&model(i)) {
                        let pause = Duration::from_millis(50);
                        self.tell(|paging, now, in_use, out| paging.on_not_fetched(now, &model(i), pause, in_use, out));
                    } else {
                        self.files.insert(model(i));
                        self.tell(|paging, now, in_use, out| paging.on_fetched(now, &model(i), in_use, out));
                    }
                }
                Event::Missing(id) if !self.stands.contains_key(&id) => {}
                Event::Missing(id) => {
                    self.stands.insert(id, Stage::Out);
                    self.tell(|paging, now, in_use, out| paging.on_missing(now, id, in_use, out));
                }
                Event::Loaded(id) if !self.stands.contains_key(&id) => {}
                Event::Loaded(id) => match self.fails.get_mut(&id).filter(|left| **left > 0) {
                    Some(left) => {
                        *left -= 1;
                        self.stands.insert(id, Stage::Out);
                        let pause = Duration::from_millis(50);
                        self.tell(|paging, now, in_use, out| paging.on_failed(now, id, pause, in_use, out));
                    }
                    None => {
                        self.stands.insert(id, Stage::In);
                        let loads = self.loaded.entry(id).or_default();
                        *loads += 1;
                        let (size, reload) = self.models[&id];
                        let first = (*loads == 1).then_some((Bytes(size), reload));
                        self.tell(|paging, now, in_use, out| paging.on_loaded(now, id, first, in_use, out));
                    }
                },
                Event::Gone(id) if !self.stands.contains_key(&id) => {}
                Event::Gone(id) => {
                    self.stands.insert(id, Stage::Out);
                    self.tell(|paging, now, in_use, out| paging.on_gone(now, id, in_use, out));
                }
                Event::Ended(id) => {
                    let at = self.ending.iter().position(|ending| *ending == id).expect("it ends once");
                    self.ending.remove(at);
                    self.tell(|paging, now, in_use, out| paging.on_ended(now, id, in_use, out));
                }
                Event::Wake => self.tell(|paging, now, in_use, out| paging.on_wake(now, in_use, out)),
            }
        }
        self.now = self.now.max(until);
    }

    /// A replica is removed, or dies and is tried again at once; its session ends so many ms later.
    fn ends(&mut self, i: u64, after: u64, removed: bool) {
        let id = ReplicaId(i);
        let stood = if removed { self.stands.remove(&id) } else { self.stands.insert(id, Stage::Out) };
        if removed && self.fetching.remove(&model(i)) {
            self.events.retain(|_, event| !matches!(event, Event::Fetched(fetched) if *fetched == i));
        }
        match stood {
            Some(Stage::In | Stage::Loading(_)) => {
                self.ending.push(id);
                self.at(self.now + Duration::from_millis(after), Event::Ended(id));
            }
            // On its way out already: that takes what it took.
            Some(Stage::Leaving) => {
                self.events.retain(|_, event| !matches!(event, Event::Gone(gone) if *gone == id));
                self.ending.push(id);
                self.at(self.now + Duration::from_millis(after), Event::Ended(id));
            }
            _ => {}
        }
        self.tell(|paging, now, in_use, out| match removed {
            true => paging.remove(now, id, in_use, out),
            false => paging.on_failed(now, id, Duration::ZERO, in_use, out),
        });
    }

    fn wait(&mut self, millis: u64) {
        self.until(self.now + Duration::from_millis(millis));
    }

    fn ended(&self, ticket: TicketId) -> Option<End> {
        self.rows[&ticket].1
    }

    fn is_in(&self, i: u64) -> bool {
        self.stands[&ReplicaId(i)] == Stage::In
    }
}

#[test]
fn what_waits_for_memory_in_use_keeps_no_other_from_being_loaded() {
    let mut node = Node::warm(10 * MB, &[(8 * MB, 10), (2 * MB, 10), (2 * MB, 10)], Keep::Worth);
    let first = node.ask(0, 1000);
    node.wait(50);
    assert!(matches!(node.ended(first), Some(End::Ran(_))));
    // From now on it is always in use, and another that is as large was never loaded.
    let (large, forever) = (ReplicaId(3), node.now + Duration::from_secs(1000));
    node.used.insert(ReplicaId(0), forever);
    node.models.insert(large, (8 * MB, Duration::from_millis(10)));
    node.stands.insert(large, Stage::Out);
    node.tell(|paging, now, in_use, out| {
        paging.place(now, large, &model(3), Bytes(8 * MB), false);
        paging.on_wake(now, in_use, out);
    });
    node.wait(2000);
    for i in [1, 2, 1, 2] {
        let asked = node.ask(i, 100);
        node.wait(100);
        assert!(matches!(node.ended(asked), Some(End::Ran(_))), "{i}: {:?}", node.ended(asked));
    }
    node.used.remove(&ReplicaId(0));
    node.wait(100);
    assert_eq!(node.stands[&large], Stage::In, "once there is room");
}

#[test]
fn nobody_waits_behind_a_load_that_may_take_for_ever() {
    let mut node = Node::warm(2 * MB, &[(2 * MB, 10), (2 * MB, 10), (2 * MB, 10)], Keep::Worth);
    let hangs = *node.stands.iter().find(|(_, stage)| **stage == Stage::Out).expect("not all fit").0;
    node.models.get_mut(&hangs).unwrap().1 = Duration::from_secs(5);
    let waits = node.ask(hangs.0, 10_000);
    node.wait(200);
    let other = (0..3).find(|i| *i != hangs.0 && node.stands[&ReplicaId(*i)] == Stage::Out).expect("one is out");
    let asked = node.ask(other, 8000);
    assert_eq!(node.ended(asked), Some(End::Rejected(Rejection::NoReplica)));
    node.wait(6000);
    assert!(matches!(node.ended(waits), Some(End::Ran(_))), "who waits for it gets it");
    let asked = node.ask(other, 8000);
    node.wait(100);
    assert!(matches!(node.ended(asked), Some(End::Ran(_))), "{:?}", node.ended(asked));
}

#[test]
fn what_fits_is_loaded_at_once_and_stays() {
    let mut node = Node::new(4 * MB, &[(MB, 10); 4], Keep::Worth);
    assert_eq!(node.loads.len(), 4, "nobody waits for anybody");
    node.until(ms(60_000));
    assert!((0..4).all(|i| node.is_in(i)) && node.evicted.is_empty() && !node.paging.is_short());
}

#[test]
fn what_does_not_fit_is_loaded_once_to_measure_it() {
    let node = Node::warm(2 * MB, &[(MB, 10); 5], Keep::Worth);
    assert!((0..5).all(|i| node.loaded[&ReplicaId(i)] == 1));
    assert_eq!((0..5).filter(|i| node.is_in(*i)).count(), 2);
}

#[test]
fn many_queries_for_a_cold_model_lead_to_one_load_and_all_run() {
    let mut node = Node::warm(2 * MB, &[(MB, 10); 3], Keep::Worth);
    let cold = (0..3).find(|i| !node.is_in(*i)).unwrap();
    let rows: Vec<TicketId> = (0..50).map(|_| node.ask(cold, 100)).collect();
    assert_eq!(node.paging.ready_at(node.now, &model(cold)), Some(node.now + Duration::from_millis(10)));
    node.wait(50);
    assert!(rows.iter().all(|row| matches!(node.ended(*row), Some(End::Ran(_)))));
    assert_eq!((node.loads.len(), node.evicted.len()), (1, 1));
}

#[test]
fn who_cannot_wait_for_a_load_is_refused_at_once_and_counts() {
    let mut node = Node::warm(2 * MB, &[(MB, 200); 3], Keep::Worth);
    let cold = (0..3).find(|i| !node.is_in(*i)).unwrap();
    let row = node.ask(cold, 100);
    assert_eq!(node.ended(row), Some(End::Rejected(Rejection::TooLate)));
    node.wait(1_000);
    assert!(node.is_in(cold), "it is worth more than what nobody asks for");
    let row = node.ask(cold, 100);
    assert!(matches!(node.ended(row), Some(End::Ran(_))));
}

#[test]
fn who_is_late_behind_what_its_device_has_waits_for_no_load() {
    let mut node = Node::warm(2 * MB, &[(MB, 10); 3], Keep::Worth);
    let cold = (0..3).find(|i| !node.is_in(*i)).unwrap();
    node.free = node.now + Duration::from_millis(80);
    let row = node.ask(cold, 81);
    assert_eq!(node.ended(row), Some(End::Rejected(Rejection::TooLate)), "its run takes 2 ms");
    let row = node.ask(cold, 82);
    node.wait(50);
    assert!(matches!(node.ended(row), Some(End::Ran(_))), "its device has it once its model is there");
    // What the load and what waits take is not added up: both go on at once. What gives way is told.
    let cold = (0..3).find(|i| !node.is_in(*i)).unwrap();
    let (now, after) = (node.now, |ms| node.now + Duration::from_millis(ms));
    let of = |finish, yields| {
        let start = Estimate { yields: Duration::from_millis(yields), ..Estimate::of(now, finish, Duration::ZERO) };
        let estimate = node.paging.estimate(now, &model(cold), start, ServiceTime::from_micros(2_000)).unwrap();
        (estimate.finish, estimate.yields, estimate.alone)
    };
    let ms = Duration::from_millis;
    assert_eq!(of(after(80), 75), (after(82), ms(70), ms(12)));
    assert_eq!(of(after(5), 5), (after(12), ms(0), ms(12)));
}

#[test]
fn a_model_is_cold_until_somebody_waits_for_its_load() {
    let mut node = Node::warm(2 * MB, &[(MB, 10); 3], Keep::Worth);
    let cold = (0..3).find(|i| !node.is_in(*i)).unwrap();
    let is_cold = |node: &Node| {
        let start = Estimate::of(node.now, node.now, Duration::ZERO);
        let estimate = node.paging.estimate(node.now, &model(cold), start, ServiceTime::from_micros(2_000));
        estimate.map(|estimate| estimate.cold)
    };
    assert_eq!(is_cold(&node), Some(true));
    node.ask(cold, 100);
    assert_eq!(is_cold(&node), Some(false), "whoever comes now has it loaded for others");
    node.wait(50);
    assert_eq!(is_cold(&node), None, "it is in memory");
}

#[test]
fn what_is_asked_more_is_not_put_out_for_what_is_asked_less() {
    let mut node = Node::warm(2 * MB, &[(MB, 200); 3], Keep::Worth);
    let cold = (0..3).find(|i| !node.is_in(*i)).unwrap();
    for _ in 0..100 {
        for i in (0..3).filter(|i| *i != cold) {
            node.ask(i, 100);
        }
        node.wait(50);
    }
    for _ in 0..5 {
        node.ask(cold, 100);
        node.wait(300);
    }
    assert!(node.evicted.is_empty() && !node.is_in(cold));
    // What comes last is loaded for it.
    let mut recent = Node::warm(2 * MB, &[(MB, 200); 3], Keep::Recent);
    let cold = (0..3).find(|i| !recent.is_in(*i)).unwrap();
    recent.ask(cold, 100);
    recent.wait(1_000);
    assert!(recent.is_in(cold));
}

#[test]
fn of_what_is_asked_alike_the_large_one_goes() {
    let mut node = Node::warm(5 * MB, &[(MB, 50), (4 * MB, 50), (MB, 50)], Keep::Worth);
    // Whichever was measured last, all are asked for.
    for _ in 0..20 {
        for i in 0..3 {
            node.ask(i, 1_000);
        }
        node.wait(400);
    }
    node.wait(1_000);
    let row = node.ask(1, 1_000);
    node.wait(500);
    assert!(matches!(node.ended(row), Some(End::Ran(_))), "who can wait is served");
    let row = node.ask(0, 1_000);
    node.wait(500);
    let row = (matches!(node.ended(row), Some(End::Ran(_))), node.ask(2, 1_000));
    node.wait(500);
    assert!(row.0 && matches!(node.ended(row.1), Some(End::Ran(_))));
    assert!(node.is_in(0) && node.is_in(2) && !node.is_in(1));
}

#[test]
fn just_enough_goes() {
    // The smallest would go first, and the large one after it does alone.
    let mut node = Node::warm(5 * MB, &[(MB, 10), (4 * MB, 10), (4 * MB, 10)], Keep::Worth);
    if !node.is_in(1) {
        node.ask(1, 1_000);
        node.wait(100);
    }
    if !node.is_in(0) {
        node.ask(0, 1_000);
        node.wait(100);
    }
    node.evicted.clear();
    node.wait(100_000);
    node.ask(1, 1_000);
    node.wait(10);
    node.ask(2, 1_000);
    node.wait(100);
    assert_eq!(node.evicted, [ReplicaId(1)]);
    assert!(node.is_in(0) && node.is_in(2));
}

#[test]
fn nothing_goes_that_is_in_use_and_what_waits_for_that_goes_on_then() {
    let mut node = Node::warm(MB, &[(MB, 10); 2], Keep::Worth);
    let (hot, cold) = if node.is_in(0) { (0, 1) } else { (1, 0) };
    node.used.insert(ReplicaId(hot), node.now + Duration::from_millis(40));
    let row = node.ask(cold, 200);
    node.wait(30);
    assert!(node.evicted.is_empty() && node.ended(row).is_none());
    node.wait(60);
    assert!(matches!(node.ended(row), Some(End::Ran(_))));
}

#[test]
fn a_row_whose_load_takes_longer_than_was_known_expires() {
    let mut node = Node::warm(MB, &[(MB, 10); 2], Keep::Worth);
    let cold = u64::from(node.is_in(0));
    node.models.get_mut(&ReplicaId(cold)).unwrap().1 = Duration::from_secs(1);
    let row = node.ask(cold, 100);
    node.wait(100);
    assert_eq!(node.ended(row), Some(End::Expired));
    node.wait(1_000);
    assert!(node.paging.ready_at(node.now, &model(1 - cold)).unwrap() > node.now);
    // Once again it takes no one by surprise.
    node.ask(1 - cold, 1_000);
    node.wait(100);
    let row = node.ask(cold, 100);
    assert_eq!(node.ended(row), Some(End::Rejected(Rejection::TooLate)));
}

#[test]
fn memory_of_what_was_removed_is_taken_until_its_session_has_ended() {
    let mut node = Node::warm(2 * MB, &[(MB, 10); 2], Keep::Worth);
    assert!(!node.paging.is_short());
    let new = ReplicaId(2);
    node.models.insert(new, (MB, Duration::from_millis(10)));
    node.stands.insert(new, Stage::Out);
    node.ends(0, 40, true);
    node.tell(|paging, now, in_use, out| {
        paging.place(now, new, &model(2), Bytes(MB), false);
        paging.on_wake(now, in_use, out);
    });
    node.wait(39);
    assert_eq!((node.stands[&new], node.paging.now(node.now).taken), (Stage::Out, Bytes(2 * MB)));
    node.wait(40);
    assert_eq!(node.stands[&new], Stage::In);
    assert!(node.evicted.is_empty() && node.is_in(1), "nothing goes for what is free in a moment");
}

#[test]
fn what_is_removed_while_it_is_loaded_takes_memory_and_the_loader_until_its_load_ends() {
    let mut node = Node::warm(2 * MB, &[(2 * MB, 50), (2 * MB, 10), (2 * MB, 10)], Keep::Worth);
    while node.is_in(0) {
        node.ask(1, 1_000);
        node.wait(100);
    }
    let (other, removed) = (if node.is_in(1) { 2 } else { 1 }, ReplicaId(0));
    let waits = node.ask(0, 1_000);
    node.wait(20);
    assert!(matches!(node.stands[&removed], Stage::Loading(_)), "{:?}", node.stands);
    node.ends(0, 30, true);
    assert_eq!(node.ended(waits), Some(End::Rejected(Rejection::NoReplica)));
    assert_eq!(node.paging.now(node.now).taken, Bytes(2 * MB));
    let late = node.ask(other, 40);
    assert_eq!(node.ended(late), Some(End::Rejected(Rejection::TooLate)), "it is loaded after that");
    let row = node.ask(other, 500);
    node.wait(29);
    assert!(node.loads.last() == Some(&removed) && node.ended(row).is_none());
    node.wait(20);
    assert!(matches!(node.ended(row), Some(End::Ran(_))), "{:?}", node.ended(row));
}

#[test]
fn a_removed_load_that_hangs_keeps_nothing_from_being_loaded_that_finds_memory() {
    let mut node = Node::warm(4 * MB, &[(2 * MB, 50), (2 * MB, 10), (2 * MB, 10)], Keep::Worth);
    while node.is_in(0) {
        let out = if node.is_in(1) { 2 } else { 1 };
        node.ask(out, 1_000);
        node.wait(100);
    }
    node.ask(0, 1_000);
    node.wait(20);
    node.ends(0, 60_000, true);
    node.wait(1_000);
    for i in [1, 2, 1] {
        let row = node.ask(i, 500);
        node.wait(200);
        assert!(matches!(node.ended(row), Some(End::Ran(_))), "{i}: {:?}", node.ended(row));
    }
}

#[test]
fn a_session_that_does_not_end_takes_memory_from_the_others() {
    let mut node = Node::warm(2 * MB, &[(MB, 10); 2], Keep::Worth);
    node.ends(0, 5_000, false);
    node.wait(1_000);
    // Two have to share what is left of it: one at a time, each on demand.
    assert!(node.paging.is_short() && node.is_in(0) != node.is_in(1));
    for i in [0, 1, 0] {
        let row = node.ask(i, 500);
        node.wait(200);
        assert!(matches!(node.ended(row), Some(End::Ran(_))), "{i}: {:?}", node.ended(row));
    }
    node.wait(5_000);
    assert!(node.is_in(0) && node.is_in(1) && !node.paging.is_short(), "all is as before");
}

#[test]
fn a_file_that_is_fetched_keeps_nothing_from_being_loaded() {
    let (memory, models) = (2 * MB, [(MB, 10); 4]);
    let mut node = Node::fetching(memory, &models, Keep::Worth, &[(0, 60_000)]);
    node.wait(1_000);
    assert!((1..4).all(|i| node.loaded.contains_key(&ReplicaId(i))), "all whose files are here: {:?}", node.loads);
    for i in [1, 2, 3, 1, 2, 3] {
        let row = node.ask(i, 100);
        node.wait(100);
        assert!(matches!(node.ended(row), Some(End::Ran(_))), "{i}: {:?}", node.ended(row));
    }
    assert!(!node.paging.thrashes(node.now));
    let row = node.ask(0, 10_000);
    assert_eq!(node.ended(row), Some(End::Rejected(Rejection::NoReplica)), "nobody knows how long that takes");
    node.until(ms(62_000));
    assert!(node.loaded.contains_key(&ReplicaId(0)));
    assert_eq!(node.paging.takes(ReplicaId(0)), Duration::from_millis(10), "and it is none of its reloads");
}

#[test]
fn so_many_files_are_fetched_at_once_and_those_that_somebody_waits_for_first() {
    let fetch: Vec<(u64, u64)> = (0..6).map(|i| (i, 100)).collect();
    let mut node = Node::fetching(MB, &[(MB, 10); 6], Keep::Worth, &fetch);
    assert_eq!((node.fetching.len(), node.loads.len()), (loads::FETCHES_MAX, 0));
    node.wait(2_000);
    assert_eq!(node.loaded.len(), 6);
    // All files are gone. Of what is asked for, all find that out before the first one is back.
    let out: Vec<u64> = (0..6).filter(|i| !node.is_in(*i)).collect();
    node.files.clear();
    let rows: Vec<TicketId> = out.iter().map(|i| node.ask(*i, 1_000)).collect();
    node.wait(50);
    let fetched: Vec<ModelRef> = node.fetching.iter().cloned().collect();
    assert_eq!(fetched, out[..loads::FETCHES_MAX].iter().map(|i| model(*i)).collect::<Vec<_>>());
    let late = node.ask(out[0], 60);
    assert_eq!(node.ended(late), Some(End::Rejected(Rejection::TooLate)), "it takes as long as the last time");
    node.wait(1_000);
    for row in rows {
        assert!(matches!(node.ended(row), Some(End::Ran(_))), "{:?}", node.ended(row));
    }
}

#[test]
fn a_file_that_cannot_be_had_is_fetched_again_and_who_waits_for_it_is_told() {
    let mut node = Node::warm(MB, &[(MB, 10); 2], Keep::Worth);
    let cold = u64::from(node.is_in(0));
    node.files.remove(&model(cold));
    node.unfetched.insert(model(cold));
    let row = node.ask(cold, 1_000);
    node.wait(10);
    assert_eq!(node.ended(row), Some(End::Rejected(Rejection::NoReplica)));
    let row = node.ask(cold, 1_000);
    assert_eq!(node.ended(row), Some(End::Rejected(Rejection::NoReplica)), "not before it is tried again");
    node.wait(60);
    let row = node.ask(cold, 1_000);
    node.wait(100);
    assert!(matches!(node.ended(row), Some(End::Ran(_))), "{:?}", node.ended(row));
}

#[test]
fn replicas_of_one_model_wait_for_one_file() {
    let mut node = Node::fetching(4 * MB, &[(MB, 10)], Keep::Worth, &[(0, 100)]);
    node.tell(|paging, now, in_use, out| {
        paging.place(now, ReplicaId(7), &model(0), Bytes(MB), false);
        paging.on_wake(now, in_use, out);
        assert!(out.iter().all(|action| matches!(action, Action::WakeAt(_))), "{out:?}");
    });
    node.tell(|paging, _, in_use, out| {
        paging.on_fetched(ms(100), &model(0), in_use, out);
        let loads = out.iter().filter(|action| matches!(action, Action::Load(_))).count();
        assert_eq!(loads, 2, "{out:?}");
        out.clear();
    });
}

#[test]
fn what_cannot_be_loaded_is_refused_and_tried_again() {
    let mut node = Node::warm(MB, &[(MB, 10); 2], Keep::Worth);
    let cold = u64::from(node.is_in(0));
    node.fails.insert(ReplicaId(cold), 1);
    let row = node.ask(cold, 100);
    node.wait(20);
    assert_eq!(node.ended(row), Some(End::Rejected(Rejection::NoReplica)));
    let row = node.ask(cold, 100);
    assert_eq!(node.ended(row), Some(End::Rejected(Rejection::NoReplica)), "not before it is tried again");
    node.wait(100);
    assert!(node.is_in(cold));
}

#[test]
fn what_takes_more_than_was_known_puts_others_out() {
    let mut node = Node::new(4 * MB, &[(MB, 10); 4], Keep::Worth);
    for size in node.models.values_mut() {
        // For the check: what is said afterwards.
        size.0 = MB;
    }
    node.until(ms(1_000));
    let more = Some((Bytes(2 * MB), Duration::from_millis(10)));
    node.tell(|paging, now, in_use, out| {
        paging.on_failed(now, ReplicaId(0), Duration::ZERO, in_use, out);
        paging.on_ended(now, ReplicaId(0), in_use, out);
        // It was loaded at once.
        out.clear();
        paging.on_loaded(now, ReplicaId(0), more, in_use, out);
        let evicts = out.iter().filter(|action| matches!(action, Action::Evict(_))).count();
        assert_eq!(evicts, 1, "{out:?}");
        assert!(!out.contains(&Action::Evict(ReplicaId(0))));
        out.clear();
    });
}

#[test]
fn a_node_that_does_little_else_than_load_says_so_until_it_is_over() {
    let mut node = Node::warm(MB, &[(MB, 90); 2], Keep::Worth);
    for _ in 0..300 {
        let cold = u64::from(node.is_in(0));
        node.ask(cold, 1_000);
        node.wait(100);
    }
    let told = node.paging.now(node.now);
    assert!(told.thrashes && told.thrashings == 1 && told.reloading > 0.8, "{told:?}");
    node.wait(20_000);
    assert!(!node.paging.thrashes(node.now));
}

#[derive(Clone, Debug)]
enum Step {
    Ask(u64, u64),
    Cancel(usize),
    Use(u64, u64),
    Fail(u64),
    Lose(u64, bool),
    Remove(u64, u64),
    Die(u64, u64),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let model = 0..8u64;
    let step = prop_oneof![
        8 => (model.clone(), 1..300u64).prop_map(|(model, left)| Step::Ask(model, left)),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => (model.clone(), 1..100u64).prop_map(|(model, millis)| Step::Use(model, millis)),
        1 => model.clone().prop_map(Step::Fail),
        1 => (model.clone(), any::<bool>()).prop_map(|(model, comes)| Step::Lose(model, comes)),
        1 => (model.clone(), 0..400u64).prop_map(|(model, after)| Step::Remove(model, after)),
        1 => (model, 0..400u64).prop_map(|(model, after)| Step::Die(model, after)),
        4 => (0..80u64).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 0..120)
}

proptest! {
    /// Memory is never exceeded, one load is under way at a time where it is short, nothing is loaded twice or put out while it is used
    /// ([`Node`] asserts all that); each row ends once, those that ran in time; and everything that is placed has been loaded in the end.
    #[test]
    fn whatever_comes_rows_end_once_and_nothing_starves(
        memory in 4..12u64,
        models in proptest::collection::vec((1..=4u64, 1..150u64), 8),
        fetch in proptest::collection::vec(0..200u64, 8),
        steps in steps(),
        recent: bool,
    ) {
        let models: Vec<(u64, u64)> = models.into_iter().map(|(size, reload)| (size * MB, reload)).collect();
        let fetch: Vec<(u64, u64)> = (0..).zip(fetch).collect();
        let mut node = Node::fetching(memory * MB, &models, if recent { Keep::Recent } else { Keep::Worth }, &fetch);
        let mut deadlines = BTreeMap::new();
        for step in steps {
            match step {
                Step::Ask(i, left) => {
                    let row = node.ask(i, left);
                    deadlines.insert(row, node.now + Duration::from_millis(left));
                }
                Step::Cancel(n) if !node.rows.is_empty() => {
                    let row = TicketId((n % node.rows.len()) as u64);
                    if node.ended(row).is_none() {
                        let of = model(node.rows[&row].0.0);
                        node.end(row, End::Cancelled);
                        node.tell(|paging, _, _, _| paging.on_cancel(&of, &[row]));
                    }
                }
                Step::Use(i, millis) => {
                    node.used.insert(ReplicaId(i), node.now + Duration::from_millis(millis));
                }
                Step::Lose(i, comes) => {
                    node.files.remove(&model(i));
                    if !comes {
                        node.unfetched.insert(model(i));
                    }
                }
                Step::Fail(i) => *node.fails.entry(ReplicaId(i)).or_default() += 1,
                Step::Remove(i, after) if node.stands.contains_key(&ReplicaId(i)) => {
                    node.ends(i, after, true);
                }
                Step::Die(i, after) if node.stands.get(&ReplicaId(i)) == Some(&Stage::In) => node.ends(i, after, false),
                Step::Wait(millis) => node.wait(millis),
                Step::Cancel(_) | Step::Remove(..) | Step::Die(..) => {}
            }
        }
        node.wait(60_000);
        for (row, (_, ended)) in &node.rows {
            let ended = ended.expect("every row ends");
            if let End::Ran(at) = ended {
                prop_assert!(at <= deadlines[row], "{row:?} ran when it was too late");
            }
        }
        for id in node.stands.keys() {
            prop_assert!(node.loaded.contains_key(id), "{id} was never loaded");
        }
        prop_assert_eq!(node.paging.held, 0);
    }
}
