//! HdrHistograms of latencies in nanoseconds, and the interval logs that HdrHistogram's own tools read.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};

use crate::result::RunResult;

/// An hour, in nanoseconds; what takes longer is recorded as this.
const LONGEST: u64 = 3_600_000_000_000;

/// A microsecond to an hour in nanoseconds, at three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1000, LONGEST, 3).expect("valid bounds")
}

/// Records one.
pub fn record(histogram: &mut Histogram<u64>, span: Duration) {
    histogram.saturating_record((span.as_nanos().min(u128::from(LONGEST)) as u64).max(1));
}

/// Microseconds at a quantile, never above the true maximum, `max`; 0 where nothing was recorded.
pub fn micros_at(histogram: &Histogram<u64>, quantile: f64, max: Duration) -> u64 {
    if histogram.is_empty() {
        return 0;
    }
    (histogram.value_at_quantile(quantile).min(max.as_nanos() as u64)).div_ceil(1000)
}

/// V2, compressed, base64: what stands in a log's lines.
pub fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut bytes).expect("writing to memory");
    STANDARD.encode(bytes)
}

/// The histogram in `text`, or nothing where it is none.
pub fn decode(text: &str) -> Option<Histogram<u64>> {
    let bytes = STANDARD.decode(text).ok()?;
    Deserializer::new().deserialize(&mut bytes.as_slice()).ok()
}

/// A log with an interval a second. Values are nanoseconds; the column of maxima is in milliseconds, as of HdrHistogram's
/// own writer.
pub fn log(result: &RunResult) -> String {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(result.started_unix_s.max(0.0));
    let mut text = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder
        .add_comment(&format!("[Logged with weir {}]", env!("CARGO_PKG_VERSION")))
        .add_comment("[Histogram log format version 1.3]")
        .with_start_time(start)
        .with_base_time(start)
        .with_max_value_divisor(1e6);
    let mut writer = builder.begin_log_with(&mut text, &mut serializer).expect("writing to memory");
    for second in &result.per_second {
        let Some(histogram) = decode(&second.histogram) else { continue };
        writer
            .write_histogram(&histogram, Duration::from_secs(second.t), Duration::from_secs(1), None)
            .expect("writing to memory");
    }
    drop(writer);
    String::from_utf8(text).expect("a log is text").replacen(
        "#[MaxValueDivisor: 1000000.000]\n",
        "#[MaxValueDivisor: 1000000.000]\n\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n",
        1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::PerSecond;
    use crate::result::tests::sample;

    #[test]
    fn a_log_is_read_back_by_the_library_s_own_reader() {
        use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
        let mut one = histogram();
        (1..=100).for_each(|ms| record(&mut one, Duration::from_millis(ms)));
        let second = |t, histogram| PerSecond { t, histogram, ..PerSecond::default() };
        let per_second = vec![second(0, encode(&one)), second(1, String::new()), second(2, encode(&one))];
        let text = log(&RunResult { per_second, started_unix_s: 1.8e9, ..sample() });
        assert!(text.contains("#[StartTime: 1800000000.000 (seconds since epoch)]\n"), "{text}");
        assert!(text.contains("\n\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\","), "{text}");
        let mut intervals = Vec::new();
        for entry in IntervalLogIterator::new(text.as_bytes()) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                let histogram = decode(interval.encoded_histogram()).unwrap();
                intervals.push((interval.start_timestamp().as_secs(), histogram.len(), interval.max()));
            }
        }
        assert_eq!(intervals.iter().map(|(t, count, _)| (*t, *count)).collect::<Vec<_>>(), [(0, 100), (2, 100)]);
        assert!((intervals[0].2 - 100.0).abs() < 0.1, "milliseconds: {}", intervals[0].2);
    }

    #[test]
    fn a_histogram_comes_back_as_it_was_written_and_the_maximum_is_true() {
        let mut all = histogram();
        for ms in [1, 2, 500] {
            record(&mut all, Duration::from_millis(ms));
        }
        assert_eq!(decode(&encode(&all)).unwrap(), all);
        assert!(all.max() > 500_000_000, "the histogram rounds up");
        assert_eq!(micros_at(&all, 1.0, Duration::from_millis(500)), 500_000);
        assert_eq!(micros_at(&histogram(), 0.5, Duration::ZERO), 0);
        assert_eq!(decode("nonsense"), None);
        record(&mut all, Duration::from_secs(1 << 40));
        assert_eq!(all.len(), 4);
    }
}
