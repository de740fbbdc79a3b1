//! What models are asked, in few bytes: every node tells it four times a second, and hears as much of the others.
//!
//! A curve is told in at most [`POINTS`] numbers of a byte each. Where it spans more steps, neighbours are told as one; whoever reads that spreads
//! it evenly over them. A number is a logarithm in steps of a fourteenth: what is asked of a step is off by 3.5 % at most, and of all
//! steps together by less than 1 %. Reports of builds that told each step in two bytes are read too.

use capnp::struct_list;
use weir_core::triage::{Asked, ByModel};

use super::control::model_ref;
use super::{BadMessage, count};
use crate::control_capnp::model_asked;

/// Numbers of one curve at most: two models of an endpoint then take less than a kilobyte a second.
const POINTS: usize = 48;
/// What 1 on the wire stands for, in slot seconds a second; 0 is nothing. The other end is some 480 slots.
const LEAST: f32 = 1e-5;
/// From one number to the next.
const RATIO: f32 = 1.072;

/// Writes what models are asked.
pub fn write_asked(mut list: struct_list::Builder<'_, model_asked::Owned>, asked: &ByModel) {
    for (i, (model, asked)) in asked.iter().enumerate() {
        let mut b = list.reborrow().get(i as u32);
        b.set_model(model.to_string());
        b.set_first(asked.first);
        b.set_steps(count(asked.soft.len()));
        let together = asked.soft.len().div_ceil(POINTS).max(1);
        let levels: Vec<u8> = asked.soft.chunks(together).map(|steps| level(steps.iter().sum())).collect();
        b.set_levels(&levels);
    }
}

/// Reads what models are asked.
pub fn read_asked(list: struct_list::Reader<'_, model_asked::Owned>) -> Result<ByModel, BadMessage> {
    let long = |short: u16| f32::from_bits(u32::from(short) << 16);
    let model = |r: model_asked::Reader<'_>| {
        let soft: Vec<f32> = match r.get_levels()? {
            [] => r.get_soft()?.iter().map(long).collect(),
            levels => spread(levels, r.get_steps() as usize)?,
        };
        let asked = Asked { first: r.get_first(), soft };
        if !asked.is_sound() {
            return Err(BadMessage::new("what is asked of a model is not a number, or more than there are steps"));
        }
        Ok((model_ref(r.get_model()?)?, asked))
    };
    list.iter().map(model).collect()
}

/// What levels say of so many steps.
fn spread(levels: &[u8], steps: usize) -> Result<Vec<f32>, BadMessage> {
    let together = steps.div_ceil(levels.len()).max(1);
    if levels.len() > POINTS || together > POINTS || steps.div_ceil(together) != levels.len() {
        return Err(BadMessage::new("what is asked of a model is not told in as many numbers as it has steps"));
    }
    let each = |(i, level): (usize, &u8)| {
        let steps = together.min(steps - i * together);
        std::iter::repeat_n(work(*level) / steps as f32, steps)
    };
    Ok(levels.iter().enumerate().flat_map(each).collect())
}

fn level(work: f32) -> u8 {
    // Casts saturate.
    if work > 0.0 { ((work / LEAST).ln() / RATIO.ln() + 1.0).round().max(0.0) as u8 } else { 0 }
}

fn work(level: u8) -> f32 {
    if level == 0 { 0.0 } else { LEAST * RATIO.powi(i32::from(level) - 1) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use capnp::message::Builder;
    use weir_core::ids::{Epoch, ModelRef, NodeName};
    use weir_core::paging::MemoryNow;
    use weir_core::placement::NodeReport;
    use weir_core::prng::Prng;
    use weir_core::triage::{Curve, Demand, Others, Tenant};
    use weir_core::units::{Instant, ServiceTime};

    use super::super::report::{read_report, write_report};
    use super::*;
    use crate::control_capnp::node_report;

    /// What is asked of a model that takes `ms` a row, by a second of rows with gains as those of a table: most of them small.
    fn asked(ms: f64, seed: u64) -> Asked {
        let (mut curve, mut prng) = (Curve::default(), Prng::new(seed));
        let cost = ServiceTime::from_micros((ms * 1e3) as u64);
        for at in 0..1000 {
            curve.add(Instant::from_millis(at), cost, 0.5 * (-7.0 * prng.uniform()).exp());
        }
        curve.asked(Instant::from_millis(1000))
    }

    /// A report as it goes over the wire, and its size in bytes.
    fn sent(asked: &ByModel) -> (ByModel, usize) {
        let report = NodeReport {
            node: NodeName::parse("n1").unwrap(),
            incarnation: 1,
            epoch: Epoch(1),
            replicas: BTreeMap::new(),
            devices: Vec::new(),
            endpoints: Vec::new(),
            up: Duration::from_secs(1),
            draining: false,
            asked: asked.clone(),
            wanted: BTreeMap::new(),
            memory: MemoryNow::default(),
        };
        let mut message = Builder::new_default();
        write_report(message.init_root(), &report);
        let bytes = capnp::serialize::write_message_to_words(&message);
        let read = super::super::framed::<node_report::Owned>(&bytes).unwrap();
        (read_report(read.get().unwrap()).unwrap().asked, bytes.len())
    }

    #[test]
    fn what_the_demos_endpoint_asks_is_told_in_less_than_a_kilobyte_a_second() {
        let model = |name: &str| ModelRef::parse(name).unwrap();
        let (_, without) = sent(&ByModel::new());
        let told = |asked: ByModel| 4 * (sent(&asked).1 - without);
        let demo =
            told(BTreeMap::from([(model("fashion-mid@1"), asked(0.4, 1)), (model("fashion-big@1"), asked(3.0, 2))]));
        let whole = Asked::of(&Asked { first: 0, soft: vec![1.0; 128] }.steps());
        assert!(whole.is_sound() && whole.soft.len() == 128, "every step there is");
        let most = told(BTreeMap::from([(model("fashion-mid@1"), whole.clone()), (model("fashion-big@1"), whole)]));
        println!(
            "the demo tells {demo} bytes a second of what is asked, and {most} with everything between nothing and all"
        );
        assert!(demo <= most && most < 1000, "{demo} and {most}");
    }

    #[test]
    fn a_price_is_hardly_another_by_what_was_told() {
        let mut errors = Vec::new();
        for (seed, ms) in [(1, 0.5), (2, 2.0), (3, 8.0), (4, 30.0)] {
            let exact = asked(ms, seed);
            let (told, _) = sent(&BTreeMap::from([(ModelRef::parse("m@1").unwrap(), exact.clone())]));
            let told = told.values().next().unwrap();
            assert!((told.total() / exact.total() - 1.0).abs() < 0.01, "{} of {}", told.total(), exact.total());
            let now = Instant::from_millis(1000);
            let price = |others: &Asked, share: f64| {
                let mut demand = Demand::new();
                demand.on_others(now, Others::of([(Asked::default(), others, share)].into_iter()));
                demand.price(now, 1, 1.0, Tenant::NOBODY)
            };
            // So much that a tenth, a third and two thirds of it can be done.
            for part in [0.1, 0.3, 0.7] {
                let share = 1.1 / part / exact.total();
                errors.push((price(told, share) / price(&exact, share) - 1.0).abs());
            }
        }
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        println!("prices are off by {mean:.3}, at most {worst:.3}");
        assert!(mean < 0.03 && worst < 0.15, "{errors:?}");
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_and_those_of_other_builds_are_read() {
        let told = |levels: &[u8], steps: u32, soft: &[u16]| {
            let mut message = Builder::new_default();
            let mut b = message.init_root::<crate::control_capnp::model_asked::Builder<'_>>();
            b.set_model("m@1");
            b.set_first(100);
            b.set_steps(steps);
            b.set_levels(levels);
            let mut list = b.init_soft(soft.len() as u32);
            soft.iter().enumerate().for_each(|(i, work)| list.set(i as u32, *work));
            let mut whole = Builder::new_default();
            let report = whole.init_root::<node_report::Builder<'_>>();
            let mut list = report.init_asked(1);
            let reader = message.get_root_as_reader::<model_asked::Reader<'_>>().unwrap();
            list.set_with_caveats(0, reader).unwrap();
            let report = whole.get_root_as_reader::<node_report::Reader<'_>>().unwrap();
            read_asked(report.get_asked().unwrap()).map(|asked| asked.into_values().next().unwrap())
        };
        assert_eq!(told(&[], 0, &[0x3f80]).unwrap(), Asked { first: 100, soft: vec![1.0] }, "as bfloat16");
        assert_eq!(told(&[0, 1], 2, &[]).unwrap().soft, [0.0, LEAST]);
        assert_eq!(told(&[0, 1], 3, &[]).unwrap().soft, [0.0, 0.0, LEAST]);
        for (levels, steps) in
            [(vec![9; 2], 1), (vec![9; 2], 9_999), (vec![9; 49], 49), (vec![9; 29], 29), (vec![9], 0)]
        {
            assert!(told(&levels, steps, &[]).is_err(), "{} for {steps}", levels.len());
        }
    }

    #[test]
    fn a_level_stands_for_what_it_was_made_of() {
        assert_eq!((level(0.0), level(f32::NAN), level(1e-9), level(1e9)), (0, 0, 0, 255));
        for number in 1..=255 {
            assert_eq!(level(work(number)), number);
        }
        let worst =
            (1..1000).map(|i| i as f32 / 100.0).map(|is| (work(level(is)) / is - 1.0).abs()).fold(0.0, f32::max);
        assert!(worst < 0.036, "{worst}");
    }
}
