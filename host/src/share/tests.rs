use super::*;

/// A peer that has met a full gate often enough.
fn flooding() -> Pressure {
    let pressure = Pressure::default();
    (0..AHEAD).for_each(|_| pressure.on_call(true));
    pressure
}

#[tokio::test(start_paused = true)]
async fn others_ask_until_a_while_after_their_last_call() {
    let crowd = Crowd::default();
    let (one, another) = (crowd.join(), crowd.join());
    assert_eq!(one.others_quiet_at(), None, "nobody has asked");
    tokio::time::advance(Duration::from_millis(5)).await;
    one.asks(Instant::now());
    assert_eq!(one.others_quiet_at(), None, "it is not its own neighbour");
    assert_eq!(another.others_quiet_at(), Some(Instant::now() + QUIET));
    another.asks(Instant::now());
    assert_eq!(one.others_quiet_at(), Some(Instant::now() + QUIET));
    assert_eq!(Crowd::default().join().others_quiet_at(), None, "another listener's are no others");
}

#[tokio::test(start_paused = true)]
async fn a_rest_is_so_many_times_what_the_last_call_took_and_not_endless() {
    let now = Instant::now();
    let pressure = flooding();
    assert_eq!(pressure.rests_until(now), now, "none was served");
    pressure.on_let_in(now);
    let ended = now + Duration::from_millis(2);
    assert_eq!(pressure.rests_until(ended), ended + Duration::from_millis(2) * RESTS);
    let ended = now + Duration::from_secs(60);
    assert_eq!(pressure.rests_until(ended), ended + REST_MAX);
}

#[test]
fn a_peer_floods_that_goes_on_meeting_a_full_gate_and_never_waits() {
    let pressure = Pressure::default();
    (0..AHEAD).for_each(|_| pressure.on_call(false));
    assert!(!pressure.is_any(), "it always found room");
    // As many as were answered at once find room, and the next does not.
    (1..AHEAD).for_each(|call| pressure.on_call(call % 64 == 1));
    assert!(pressure.is_any() && !pressure.floods());
    pressure.on_call(true);
    assert!(pressure.floods());
    (0..AHEAD).for_each(|_| pressure.on_call(false));
    assert!(pressure.floods(), "it finds room because it is held back");
    pressure.on_nothing_sent(PAUSE / 2);
    assert!(pressure.floods(), "its sender may have been kept from a core");
    pressure.on_nothing_sent(PAUSE);
    assert!(!pressure.floods() && !pressure.is_any());
}

#[test]
fn a_gate_that_was_full_by_chance_is_forgotten() {
    let pressure = Pressure::default();
    pressure.on_call(true);
    (0..AHEAD / 2).for_each(|_| pressure.on_call(false));
    assert!(!pressure.is_any());
}
