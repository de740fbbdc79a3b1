//! What models are asked, in few bytes: every node tells it four times a second, and hears as much of the others.
//!
//! All curves are one piece of data, in the order of their models, so that nothing is spent on what lies between them. Of each: how many bytes of the name are
//! those of the one before, how many follow, these; the first step, how many steps there are, how many of them each number is the sum of, and
//! the numbers. What is told of several steps together is spread evenly over them. A number is a byte, a logarithm in steps of a fourteenth: what is asked of a
//! step is off by 3.5 % at most, and of all steps together by less than 1 %. Models that nothing is asked of are not told. Reports of builds that told each
//! model in a message of its own are read too.

use capnp::struct_list;
use weir_core::ids::ModelRef;
use weir_core::triage::{Asked, ByModel};

use super::BadMessage;
use super::control::model_ref;
use crate::control_capnp::model_asked;

/// Bytes of one curve: four models of an endpoint then take less than a kilobyte a second. A long name leaves fewer for numbers.
const CURVE: usize = 60;
/// Numbers of a curve whose name takes all of that. The price is hardly another one by them; only more bytes are told.
const POINTS_LEAST: usize = 26;
/// What stands beside the name and the numbers.
const BESIDE: usize = 5;
/// What 1 on the wire stands for, in slot seconds a second; 0 is nothing. The other end is some 480 slots.
const LEAST: f32 = 1e-5;
/// From one number to the next.
const RATIO: f32 = 1.072;

/// What models are asked, as it is told.
pub fn write_asked(asked: &ByModel) -> Vec<u8> {
    let (mut told, mut before) = (Vec::new(), Vec::new());
    for (model, asked) in asked.iter().filter(|(_, asked)| !asked.soft.is_empty()) {
        let name = model.to_string().into_bytes();
        let shared = name.iter().zip(&before).take_while(|(a, b)| a == b).count();
        let own = &name[shared..];
        let points = CURVE.saturating_sub(BESIDE + own.len()).clamp(POINTS_LEAST, Asked::POINTS);
        let (together, sums) = asked.merged(points);
        told.extend([byte(shared), byte(own.len())]);
        told.extend(own);
        told.extend([byte(asked.first as usize), byte(asked.soft.len()), byte(together)]);
        told.extend(sums.into_iter().map(level));
        before = name;
    }
    told
}

/// Names, steps and what is merged of them are shorter than that.
fn byte(count: usize) -> u8 {
    u8::try_from(count).expect("it is less than 256")
}

/// Reads what models are asked: all of it, and where there is none what an older build told.
pub fn read_asked(told: &[u8], older: struct_list::Reader<'_, model_asked::Owned>) -> Result<ByModel, BadMessage> {
    let mut all = ByModel::new();
    let (mut left, mut name) = (Left(told), Vec::new());
    while !left.0.is_empty() {
        let shared = left.byte()?;
        if shared > name.len() {
            return Err(cut_short());
        }
        name.truncate(shared);
        let own = left.byte()?;
        name.extend(left.take(own)?);
        let text = std::str::from_utf8(&name).map_err(|_| BadMessage::new("a model's name is no text"))?;
        let model = ModelRef::parse(text).map_err(|bad| BadMessage::new(bad.to_string()))?;
        let (first, steps, together) = (left.byte()?, left.byte()?, left.byte()?);
        let sums = left.take(steps.div_ceil(together.max(1)))?.iter().map(|level| work(*level)).collect::<Vec<_>>();
        all.insert(model, sound(Asked::spread(first as u32, steps, together, &sums))?);
    }
    for r in older {
        let asked = match r.get_levels()? {
            [] => Some(Asked { first: r.get_first(), soft: r.get_soft()?.iter().map(long).collect() }),
            levels => of_older(r.get_first(), levels, r.get_steps() as usize),
        };
        all.insert(model_ref(r.get_model()?)?, sound(asked)?);
    }
    Ok(all)
}

/// What is still to be read.
struct Left<'a>(&'a [u8]);

impl<'a> Left<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], BadMessage> {
        let (taken, left) = self.0.split_at_checked(bytes).ok_or_else(cut_short)?;
        self.0 = left;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<usize, BadMessage> {
        Ok(usize::from(self.take(1)?[0]))
    }
}

fn cut_short() -> BadMessage {
    BadMessage::new("what is asked of models ends in the middle")
}

fn sound(asked: Option<Asked>) -> Result<Asked, BadMessage> {
    asked.filter(Asked::is_sound).ok_or_else(|| {
        BadMessage::new("what is asked of a model is not a number, or is told of other steps than there are")
    })
}

/// Levels of a build that told at most 48, of so many steps.
fn of_older(first: u32, levels: &[u8], steps: usize) -> Option<Asked> {
    let sums: Vec<f32> = levels.iter().map(|level| work(*level)).collect();
    Asked::spread(first, steps, steps.div_ceil(levels.len()), &sums)
}

/// From bfloat16.
fn long(short: u16) -> f32 {
    f32::from_bits(u32::from(short) << 16)
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
    fn what_an_endpoint_with_four_gated_stages_asks_is_told_in_less_than_a_kilobyte_a_second() {
        let model = |name: &str| ModelRef::parse(name).unwrap();
        let (_, without) = sent(&ByModel::new());
        let told = |asked: ByModel| 4 * (sent(&asked).1 - without);
        let whole = Asked::of(&Asked { first: 0, soft: vec![1.0; 224] }.steps());
        assert!(whole.is_sound() && whole.soft.len() == 224, "every step there is");
        let demo =
            told(BTreeMap::from([(model("fashion-mid@1"), asked(0.4, 1)), (model("fashion-big@1"), asked(3.0, 2))]));
        // With names that have nothing in common, as long as the digest of an artifact makes them.
        let names = ["anchors-resnet", "boxes-resnet", "crops-resnet", "details-resnet"];
        let names = names.map(|name| model(&format!("{name}@0123456789ab")));
        let four =
            told(names.iter().zip([0.4, 3.0, 9.0, 30.0]).map(|(name, ms)| (name.clone(), asked(ms, 3))).collect());
        let most = told(names.iter().map(|name| (name.clone(), whole.clone())).collect());
        println!(
            "{demo} bytes a second tell of the demo's two models, {four} of four, and {most} of four with everything between nothing and all"
        );
        assert!(demo < four && four <= most && most < 1000, "{demo}, {four} and {most}");
        let idle = names.iter().map(|name| (name.clone(), Asked::default()));
        assert_eq!(told(idle.collect()), 0, "what nothing is asked of is not told");
    }

    #[test]
    fn a_price_is_hardly_another_by_what_was_told() {
        let mut errors = Vec::new();
        for (seed, ms) in [(1, 0.5), (2, 2.0), (3, 8.0), (4, 30.0)] {
            let exact = asked(ms, seed);
            let names = ["m@1".to_owned(), format!("{}@{}", "m".repeat(60), "1".repeat(60))];
            // Of the longest names least is told.
            let told = names.map(|name| {
                let (told, _) = sent(&BTreeMap::from([(ModelRef::parse(&name).unwrap(), exact.clone())]));
                told.into_values().next().unwrap()
            });
            for told in &told {
                assert!((told.total() / exact.total() - 1.0).abs() < 0.01, "{} of {}", told.total(), exact.total());
            }
            let now = Instant::from_millis(1000);
            let price = |others: &Asked, share: f64| {
                let mut demand = Demand::new();
                demand.on_others(now, Others::of([(Asked::default(), others, share)].into_iter()));
                demand.price(now, 1, 1.0, Tenant::NOBODY)
            };
            // So much that a tenth, a third and two thirds of it can be done.
            for part in [0.1, 0.3, 0.7] {
                let share = 1.1 / part / exact.total();
                let error = |told: &Asked| (price(told, share) / price(&exact, share) - 1.0).abs();
                errors.push([error(&told[0]), error(&told[1])]);
            }
        }
        for (i, name) in ["m@1", "the longest name"].into_iter().enumerate() {
            let of = || errors.iter().map(|error| error[i]);
            let (mean, worst) = (of().sum::<f64>() / errors.len() as f64, of().fold(0.0, f64::max));
            println!("prices are off by {mean:.3}, at most {worst:.3}, of {name}");
            assert!(mean < 0.03 && worst < 0.15, "{errors:?}");
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_and_those_of_other_builds_are_read() {
        let told = |levels: &[u8], steps: u32, soft: &[u16]| {
            let mut message = Builder::new_default();
            let mut b = message.init_root::<crate::control_capnp::model_asked::Builder<'_>>();
            b.set_model("m@1");
            b.set_first(196);
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
            read_asked(&[], report.get_asked().unwrap()).map(|asked| asked.into_values().next().unwrap())
        };
        assert_eq!(told(&[], 0, &[0x3f80]).unwrap(), Asked { first: 196, soft: vec![1.0] }, "as bfloat16");
        assert_eq!(told(&[0, 1], 2, &[]).unwrap().soft, [0.0, LEAST]);
        assert_eq!(told(&[0, 1], 3, &[]).unwrap().soft, [0.0, 0.0, LEAST]);
        for (levels, steps) in
            [(vec![9; 2], 1), (vec![9; 2], 9_999), (vec![9; 49], 49), (vec![9; 29], 29), (vec![9], 0)]
        {
            assert!(told(&levels, steps, &[]).is_err(), "{} for {steps}", levels.len());
        }
    }

    #[test]
    fn whatever_comes_is_read_or_refused() {
        let read = |told: &[u8]| {
            let mut message = Builder::new_default();
            message.init_root::<node_report::Builder<'_>>();
            let report = message.get_root_as_reader::<node_report::Reader<'_>>().unwrap();
            read_asked(told, report.get_asked().unwrap())
        };
        let model = |name: &str| ModelRef::parse(name).unwrap();
        let all = BTreeMap::from([
            (model("fashion-big@1"), asked(3.0, 2).as_told()),
            (model("fashion-big@10"), Asked { first: 223, soft: vec![1.0] }),
            (model("fashion-mid@1"), asked(0.4, 1).as_told()),
            (model("other@1"), Asked { first: 0, soft: vec![1.0; 224] }.as_told()),
        ]);
        let told = write_asked(&all);
        let heard = read(&told).unwrap();
        assert_eq!(heard.keys().collect::<Vec<_>>(), all.keys().collect::<Vec<_>>());
        for (heard, said) in heard.values().zip(all.values()) {
            assert_eq!((heard.first, heard.soft.len()), (said.first, said.soft.len()));
            for (heard, said) in heard.soft.iter().zip(&said.soft) {
                assert!((heard - said).abs() <= 0.036 * said + LEAST, "{heard} {said}");
            }
        }
        let ends: Vec<usize> = (0..told.len()).filter(|end| read(&told[..*end]).is_ok()).collect();
        assert_eq!(ends.len(), 4, "between curves, and nowhere else: {ends:?}");
        // A name that begins as none did before, steps beyond the last, nothing for something.
        let curve = |bytes: &[u8]| [&[0, 3], &b"m@1"[..], bytes].concat();
        assert!(read(&curve(&[223, 1, 1, 9])).is_ok());
        for bad in [vec![4, 1, b'1', 0, 1, 1, 9], curve(&[223, 2, 1, 9, 9]), curve(&[0, 200, 2]), curve(&[0, 1, 0, 9])]
        {
            assert!(read(&bad).is_err(), "{bad:?}");
        }
        assert!(read(&[0, 2, b'm', 0xff, 0, 0, 1]).is_err(), "no name");
        let mut prng = Prng::new(5);
        for _ in 0..20_000 {
            let mut broken = told.clone();
            for _ in 0..=prng.below(3) {
                let at = prng.below(broken.len() as u64) as usize;
                broken[at] = prng.below(256) as u8;
            }
            if let Ok(heard) = read(&broken) {
                assert!(heard.values().all(Asked::is_sound));
            }
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
