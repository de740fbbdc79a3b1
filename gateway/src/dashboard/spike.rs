//! A burst of queries on demand, so that triage can be seen at work: open loop, bounded in rate and time.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use weir_client::{LocalClient, Request};
use weir_core::ids::EndpointName;
use weir_core::outcome::Outcome;
use weir_core::prng::Prng;
use weir_core::tensor::{DType, Tensor, TensorSpec};

use crate::infer::has_rows;

/// Rows to send to an endpoint: by endpoint, inputs whose first dimension is rows. For others rows are made up.
pub type Samples = BTreeMap<EndpointName, Vec<(String, Tensor)>>;

/// At most, a second and in all: what one thread can send, and what a demonstration needs.
const RATE_MAX: f64 = 5_000.0;
const SECONDS_MAX: f64 = 10.0;
/// Queries of a spike that nobody has answered: what is beyond is told as not sent.
const IN_FLIGHT_MAX: usize = 4_096;

/// What somebody wants sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Spike {
    endpoint: EndpointName,
    rate: f64,
    seconds: f64,
}

#[derive(Deserialize)]
struct Asked {
    endpoint: String,
    rate: f64,
    seconds: f64,
}

impl Spike {
    /// From the page's JSON.
    pub fn parse(text: &str) -> Result<Spike, String> {
        let asked: Asked = serde_json::from_str(text).map_err(|error| format!("that is no spike: {error}"))?;
        if !(asked.rate > 0.0 && asked.rate <= RATE_MAX && asked.seconds > 0.0 && asked.seconds <= SECONDS_MAX) {
            return Err(format!("a spike has at most {RATE_MAX} queries a second, for at most {SECONDS_MAX} s"));
        }
        let endpoint = EndpointName::parse(&asked.endpoint).map_err(|bad| bad.to_string())?;
        Ok(Spike { endpoint, rate: asked.rate, seconds: asked.seconds })
    }
}

/// What came of the last one.
#[derive(Clone, Debug, Default)]
struct Told {
    endpoint: String,
    over: bool,
    sent: u64,
    unsent: u64,
    answered: u64,
    degraded: u64,
    refused: u64,
    failed: u64,
    error: String,
}

/// One spike after the other.
pub struct Spikes {
    samples: Samples,
    told: Mutex<Option<Told>>,
}

impl Spikes {
    /// With rows for some endpoints.
    pub fn new(samples: Samples) -> Spikes {
        Spikes { samples, told: Mutex::default() }
    }

    /// What came of the last one; null where there was none.
    pub fn told(&self) -> Value {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.as_ref().map_or(Value::Null, |told| {
            json!({"endpoint": told.endpoint, "over": told.over, "sent": told.sent, "unsent": told.unsent,
                "answered": told.answered, "degraded": told.degraded, "refused": told.refused, "failed": told.failed,
                "error": told.error})
        })
    }

    fn tell(&self, with: impl FnOnce(&mut Told)) {
        with(self.told.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default());
    }

    /// It could not be sent.
    pub fn failed(&self, why: String) {
        self.tell(|told| *told = Told { over: true, error: why, ..Told::default() });
    }

    /// Sends it, and waits for its answers.
    pub async fn run(&self, client: &LocalClient, spike: Spike) {
        let info = match client.describe(&spike.endpoint).await {
            Ok(info) => info,
            Err(error) => return self.failed(error.to_string()),
        };
        let (inputs, whole) = (&info.inputs, !has_rows(&info));
        let rows = self.samples.get(&spike.endpoint).cloned();
        let mut prng = Prng::new(7);
        let rows = Rc::new(rows.unwrap_or_else(|| inputs.iter().map(|spec| made_up(spec, &mut prng)).collect()));
        let count = rows.iter().filter_map(|(_, tensor)| tensor.shape.first().copied()).min().unwrap_or(1).max(1);
        self.tell(|told| *told = Told { endpoint: spike.endpoint.to_string(), ..Told::default() });
        let began = tokio::time::Instant::now();
        let (mut due, mut asked) = (0.0, JoinSet::new());
        loop {
            // Gaps as of independent callers.
            due += prng.exponential() / spike.rate;
            if due > spike.seconds {
                break;
            }
            tokio::time::sleep_until(began + Duration::from_secs_f64(due)).await;
            while let Some(ended) = asked.try_join_next() {
                self.count(ended.ok());
            }
            if asked.len() >= IN_FLIGHT_MAX {
                self.tell(|told| told.unsent += 1);
                continue;
            }
            let row = (!whole).then(|| prng.below(count));
            let request = request(&spike.endpoint, &rows, row);
            let client = client.clone();
            self.tell(|told| told.sent += 1);
            asked.spawn_local(async move {
                let answer = client.predict(&request).await.into_iter().next();
                answer.map_or((Outcome::Failed, false), |answer| (answer.outcome, answer.degraded))
            });
        }
        while let Some(ended) = asked.join_next().await {
            self.count(ended.ok());
        }
        self.tell(|told| told.over = true);
    }

    fn count(&self, ended: Option<(Outcome, bool)>) {
        self.tell(|told| match ended {
            Some((Outcome::Answered, degraded)) => {
                told.answered += 1;
                told.degraded += u64::from(degraded);
            }
            Some((Outcome::Rejected(_) | Outcome::Expired, _)) => told.refused += 1,
            Some((Outcome::Failed | Outcome::Unknown, _)) | None => told.failed += 1,
        });
    }
}

/// One row, or the arrays as they are, with the endpoint's own deadline and class.
fn request(endpoint: &EndpointName, rows: &[(String, Tensor)], row: Option<u64>) -> Request {
    let one = |(name, tensor): &(String, Tensor)| {
        let Some(row) = row else { return (name.clone(), tensor.clone()) };
        let count = tensor.shape.first().copied().unwrap_or(1).max(1) as usize;
        let size = tensor.data.len() / count;
        let at = row as usize * size;
        let mut shape = tensor.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = 1;
        }
        (name.clone(), Tensor { dtype: tensor.dtype, shape, data: tensor.data[at..at + size].to_vec() })
    };
    Request {
        endpoint: endpoint.clone(),
        inputs: rows.iter().map(one).collect(),
        whole: row.is_none(),
        deadline: None,
        class: None,
        outputs: Vec::new(),
        min_stage: None,
        max_stage: None,
        trace: false,
    }
}

/// Some row of an input, as noise where it has numbers.
fn made_up(spec: &TensorSpec, prng: &mut Prng) -> (String, Tensor) {
    let shape: Vec<u64> = spec.shape.iter().map(|dim| dim.unwrap_or(1)).collect();
    let elements: u64 = shape.iter().product();
    let data = (0..elements).flat_map(|_| match spec.dtype {
        DType::F32 => (prng.uniform() as f32).to_le_bytes().to_vec(),
        DType::F64 => prng.uniform().to_le_bytes().to_vec(),
        dtype => vec![0; dtype.size().unwrap_or(4)],
    });
    (spec.name.clone(), Tensor { dtype: spec.dtype, data: data.collect(), shape })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_bounded() {
        let parse = |rate: &str, seconds: &str| {
            Spike::parse(&format!("{{\"endpoint\": \"e\", \"rate\": {rate}, \"seconds\": {seconds}}}"))
        };
        assert!(parse("1000", "2.5").is_ok());
        for (rate, seconds) in [("0", "1"), ("-1", "1"), ("5001", "1"), ("1", "0"), ("1", "11"), ("null", "1")] {
            assert!(parse(rate, seconds).is_err(), "{rate} {seconds}");
        }
        assert!(Spike::parse("{\"endpoint\": \"../e\", \"rate\": 1, \"seconds\": 1}").is_err());
        assert!(Spike::parse("no").is_err());
    }

    #[test]
    fn rows_of_any_type_are_made_up_and_taken_one_by_one() {
        let mut prng = Prng::new(1);
        for dtype in DType::ALL {
            let spec = TensorSpec { name: "x".into(), dtype, shape: vec![None, Some(3), None] };
            let (_, tensor) = made_up(&spec, &mut prng);
            Tensor::new(tensor.dtype, tensor.shape, tensor.data).unwrap();
        }
        let rows = vec![("x".to_owned(), Tensor::f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]))];
        let endpoint = EndpointName::parse("e").unwrap();
        assert_eq!(request(&endpoint, &rows, Some(1)).inputs[0].1, Tensor::f32(&[1, 2], &[3.0, 4.0]));
        // Where the first dimension is no rows, it is what the endpoint takes.
        let fixed = TensorSpec { name: "x".into(), dtype: DType::F32, shape: vec![Some(4), Some(2)] };
        let whole = request(&endpoint, &[made_up(&fixed, &mut prng)], None);
        assert!(whole.whole && whole.inputs[0].1.shape == [4, 2]);
    }
}
