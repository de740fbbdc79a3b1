//! Trace files: CSV, gzipped or not.

use std::io::Read;
use std::path::{Path, PathBuf};

use weir_core::workload::{BadTrace, Trace};

/// Why a file is no trace.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TraceError {
    #[error("cannot read the trace {path} ({cause}); name a .csv or .csv.gz file")]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("the trace {path} cannot be replayed: {cause}")]
    Bad { path: PathBuf, cause: BadTrace },
}

/// Text of a trace at most, unpacked: 50 million requests.
const UNPACKED_MAX: u64 = 2 << 30;

/// Reads a trace; what begins as gzip does is unpacked.
pub fn read(path: &Path) -> Result<Trace, TraceError> {
    let unreadable = |cause| TraceError::Read { path: path.to_owned(), cause };
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let text = if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut text = String::new();
        let mut unpacking = flate2::read::MultiGzDecoder::new(bytes.as_slice()).take(UNPACKED_MAX + 1);
        unpacking.read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > UNPACKED_MAX {
            return Err(unreadable(std::io::Error::other("it unpacks to more than 2 GiB")));
        }
        text
    } else {
        String::from_utf8(bytes).map_err(|_| unreadable(std::io::Error::other("it is not UTF-8 text")))?
    };
    Trace::parse(&text).map_err(|cause| TraceError::Bad { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use weir_core::prng::Prng;
    use weir_core::units::Instant;
    use weir_core::workload::{Arrivals, Statistics};

    use super::*;
    use crate::schedule::{Flow, Schedule};

    const TEXT: &str = "t_seconds,model\n0.0,a\n0.25,b\n0.25,a\n1.5,a\n";

    fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn a_trace_is_read_gzipped_or_not() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(TEXT.as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        for (name, bytes) in [("t.csv", TEXT.as_bytes()), ("t.csv.gz", &packed)] {
            let (_folder, path) = file(name, bytes);
            assert_eq!(read(&path).unwrap().requests().len(), 4);
        }
        for bytes in [&packed[..packed.len() - 9], b"", b"t_seconds,model\n", b"nonsense", b"\xff\xfe"] {
            let (_folder, path) = file("t.csv.gz", bytes);
            let why = read(&path).unwrap_err().to_string();
            assert!(why.contains("t.csv.gz"), "{why}");
        }
        assert!(read(Path::new("nowhere.csv")).unwrap_err().to_string().contains("name a .csv or .csv.gz file"));
    }

    #[test]
    fn a_replay_sends_in_every_window_what_the_trace_has_there() {
        // Bursts: up to 39 queries share a few milliseconds of each second.
        let mut prng = Prng::new(3);
        let mut text = String::from("t_seconds,model\n");
        for second in 0..120 {
            let mut offsets: Vec<u64> = (0..prng.below(40)).map(|_| prng.below(50_000)).collect();
            offsets.sort_unstable();
            offsets.iter().for_each(|us| text.push_str(&format!("{second}.{us:06},m\n")));
        }
        let trace = Trace::parse(&text).unwrap();
        let process = Arrivals::parse("trace:t.csv").unwrap().process(None, Some(&trace)).unwrap();
        let flows = [Flow { process, choices: vec![(0, 1.0)] }];
        let sent: Vec<Instant> =
            Schedule::new(&flows, &[10], 1, 7, Duration::from_secs(1000)).map(|due| Instant::ZERO + due.at).collect();
        let counts = |instants: &[Instant]| {
            let mut counts = std::collections::BTreeMap::new();
            for at in instants {
                *counts.entry(at.since(Instant::ZERO).as_millis() / 100).or_insert(0) += 1;
            }
            counts
        };
        assert_eq!(counts(&sent), counts(&trace.instants()));
        let dispersion = |instants: &[Instant]| Statistics::of(instants).windows[0].dispersion.unwrap();
        let (got, want) = (dispersion(&sent), dispersion(&trace.instants()));
        assert!((got / want - 1.0).abs() < 0.01 && want > 5.0, "{got} should be {want}");
    }

    /// Times of a kept trace in tenths of a millisecond, read by hand.
    fn by_hand(path: &Path, digits: usize) -> Vec<u64> {
        let mut text = String::new();
        flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        let number = |line: &str| {
            let (whole, fraction) = line.split(',').next().unwrap().split_once('.').unwrap();
            assert_eq!(fraction.len(), digits);
            format!("{whole}{fraction}").parse().unwrap()
        };
        text.lines().skip(1).map(number).collect()
    }

    /// Real ones (`benches/traces/README.md`): counts in each window, and dispersion, against what is taken from the text without
    /// any of the code that replays. The dispersions were computed by another program.
    #[test]
    fn a_replay_of_real_traces_has_their_counts_and_their_dispersion() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/traces");
        for (name, requests, digits, dispersions) in [
            (
                "azure_conversation_15min.csv.gz",
                6541,
                4,
                [(100, 1.0447314489866926), (1_000, 1.1295357665435977), (10_000, 1.5110911484120697)],
            ),
            (
                "servegen_clients_5min.csv.gz",
                6873,
                3,
                [(100, 3.891190079129624), (1_000, 5.252693459359835), (10_000, 8.901183425793896)],
            ),
        ] {
            let path = folder.join(name);
            let process = Arrivals::parse("trace:t.csv").unwrap().process(None, Some(&read(&path).unwrap())).unwrap();
            let flows = [Flow { process, choices: vec![(0, 1.0)] }];
            let sent: Vec<Instant> = Schedule::new(&flows, &[10], 1, 7, Duration::from_secs(1000))
                .map(|due| Instant::ZERO + due.at)
                .collect();
            let times = by_hand(&path, digits);
            assert_eq!((sent.len(), times.len()), (requests, requests));
            let tenth = 10u64.pow(digits as u32 - 1);
            let windows = |of: &dyn Fn(u64) -> usize| (0..=times[requests - 1] / tenth).map(of).collect::<Vec<_>>();
            let wanted = windows(&|window| times.iter().filter(|t| **t / tenth == window).count());
            let got = windows(&|window| sent.iter().filter(|at| at.as_nanos() / 100_000_000 == window).count());
            assert!(wanted == got, "{name}");
            let statistics = Statistics::of(&sent);
            for (width, dispersion) in dispersions {
                let window = statistics.windows.iter().find(|window| window.width.as_millis() == width).unwrap();
                let change = window.dispersion.unwrap() / dispersion - 1.0;
                assert!(change.abs() < 0.01, "{name}: dispersion in {width} ms is {change} off");
            }
        }
    }
}
