use weir_core::units::{Bytes, ServiceTime};

use super::*;
use crate::bench::HandClock;
use crate::memory::Memory;

fn node(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

/// A model takes 1 ms on one of two other nodes, and on the other 10 and 8 ms on two devices.
#[test]
fn a_slow_node_is_not_taken_to_be_as_fast_as_another() {
    let model = ModelRef::parse("m@1").unwrap();
    let (mut state, mut routing) = (State::default(), Routing::default());
    for (id, at, device, ms) in [(1, "n2", "a", 1), (2, "n3", "a", 10), (3, "n3", "b", 8)] {
        let device = DeviceName::parse(device).unwrap();
        let assignment = Assignment { model: model.clone(), node: node(at), device };
        state.plan.assignments.insert(ReplicaId(id), assignment);
        routing.ready.insert(ReplicaId(id));
        routing.profiles.insert(ReplicaId(id), Profile::new(&[(1, ServiceTime::from_micros(1000 * ms))]));
    }
    let table = Table::new(&node("n1"), &state, &routing);
    let (memory, _orders) = Memory::new(Arc::new(HandClock::default()), Bytes(1));
    let devices = Devices { by_name: BTreeMap::new(), memory };
    let now = Instant::from_millis(1);
    let known = candidates(
        &table,
        &devices,
        &RemoteWaits::default(),
        now,
        &model,
        (Inquiry::of(Class::Default, Deadline::NEVER), None),
        &[],
    );
    let takes = |at: &str| {
        let there = known.iter().find(|known| known.target == Target::Remote(node(at)));
        there.map(|known| known.estimate.alone.as_millis())
    };
    assert_eq!((takes("n2"), takes("n3")), (Some(1), Some(8)));
    let targets = &table.targets[&model];
    assert_eq!(targets.elsewhere(), targets.at(&node("n2")), "where its rows meet first");
}
