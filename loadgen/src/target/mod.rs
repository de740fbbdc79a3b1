//! What is measured: something that answers queries made of rows of a data set.

mod oip;
pub mod oip_grpc;
pub mod oip_http;
pub mod weir;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use weir_core::outcome::Outcome;
use weir_core::tensor::{DType, Tensor, TensorSpec};

use crate::data::Data;

/// Where a target is, as `--target` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `weir://host:7300,host:7301`: coordinators.
    Weir(Vec<String>),
    /// `oip-http://host:8000/model`.
    OipHttp(Server),
    /// `oip-grpc://host:8001/model`.
    OipGrpc(Server),
}

/// A server of the open inference protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `host:port`.
    pub authority: String,
    /// What is asked where nobody names an endpoint.
    pub model: Option<String>,
}

/// A target that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no target; write weir://host:7300, oip-http://host:8000/model or oip-grpc://host:8001/model (without TLS)"
)]
pub struct BadAddress {
    text: String,
}

impl Address {
    /// Parses a target.
    pub fn parse(text: &str) -> Result<Address, BadAddress> {
        let bad = || BadAddress { text: text.to_owned() };
        let is_authority = |authority: &str| {
            let parts = authority.rsplit_once(':');
            let safe = |host: &str| host.chars().all(|c| c.is_ascii_alphanumeric() || "-._[]:".contains(c));
            parts.is_some_and(|(host, port)| !host.is_empty() && safe(host) && port.parse::<u16>().is_ok())
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
        if scheme == "weir" {
            let coordinators: Vec<String> = rest.trim_end_matches('/').split(',').map(str::to_owned).collect();
            return match coordinators.iter().all(|address| is_authority(address)) {
                true => Ok(Address::Weir(coordinators)),
                false => Err(bad()),
            };
        }
        let (authority, model) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_authority(authority) || model.contains(['/', '?', '#']) || model.chars().any(char::is_whitespace) {
            return Err(bad());
        }
        let model = Some(model.to_owned()).filter(|model| !model.is_empty());
        let server = Server { authority: authority.to_owned(), model };
        match scheme {
            "oip-http" => Ok(Address::OipHttp(server)),
            "oip-grpc" => Ok(Address::OipGrpc(server)),
            _ => Err(bad()),
        }
    }
}

/// One endpoint under load, and what it is asked.
#[derive(Clone, Debug)]
pub struct Stream {
    /// In results; the endpoint's own, unless one endpoint is asked in several ways.
    pub name: String,
    /// As the target calls it.
    pub endpoint: String,
    /// Fitted to its inputs.
    pub data: Arc<Data>,
    /// The right answer for each row.
    pub labels: Option<Arc<[i64]>>,
    /// The output that labels are compared with.
    pub label_output: Option<String>,
    /// Of each query.
    pub deadline: Duration,
}

impl Stream {
    /// The output that an answer must have; none where there is nothing to compare.
    pub fn compared(&self) -> Option<&str> {
        self.label_output.as_deref().filter(|_| self.labels.is_some())
    }
}

/// What an endpoint takes and gives.
#[derive(Clone, Debug)]
pub struct Described {
    /// Inputs, a dimension for rows included; empty where the target does not tell.
    pub inputs: Vec<TensorSpec>,
    /// The output that is the answer, where there is one to tell.
    pub label_output: Option<String>,
    /// For a query that brings none; absent where the target has none.
    pub deadline: Option<Duration>,
}

/// Why a target is not there to be measured, by who must act.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TargetError {
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Usage(String),
}

/// One query.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Index of the [`Stream`].
    pub stream: usize,
    /// Rows of its data, at least one.
    pub rows: Vec<u32>,
    /// From now.
    pub deadline: Duration,
}

/// What became of one query.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Of its rows the worst: answered where all are.
    pub outcome: Outcome,
    /// Why it was not answered.
    pub message: String,
    /// In the order asked; empty where it was not answered.
    pub rows: Vec<RowReply>,
    /// Some row got less than the deepest stage that was wanted.
    pub degraded: bool,
    /// Highest price of computing time that it met; 0 where there is none.
    pub price: f64,
    /// Of all rows: what load is expected to have cost, in units of value; 0 where the target does not tell.
    pub expected_loss: f64,
}

/// What became of one row.
#[derive(Clone, Debug, Default)]
pub struct RowReply {
    /// The class that was answered.
    pub label: Option<i64>,
    /// Stage that answered; empty where the target has none.
    pub stage: String,
    /// How likely the answer is to be right, by the target's calibration.
    pub expected_right: Option<f64>,
}

impl Reply {
    /// No answer.
    pub fn none(outcome: Outcome, message: impl Into<String>) -> Reply {
        Reply { outcome, message: message.into(), rows: Vec::new(), degraded: false, price: 0.0, expected_loss: 0.0 }
    }
}

/// A server under load, as one thread sees it.
pub trait Target {
    /// Asks. What is computed before the returned future is polled for the second time counts as the generator's own time.
    fn ask(&self, ask: Ask) -> LocalBoxFuture<'static, Reply>;

    /// What the target's own client refuses at once, before anything is made ready: then it is not asked.
    fn refuses(&self, _deadline: Duration) -> Option<Reply> {
        None
    }
}

/// Makes connections to a server, on whatever thread sends.
pub trait Connect: Send + Sync {
    /// As it stands in results.
    fn name(&self) -> String;
    /// What `endpoint` takes and gives.
    fn describe<'a>(&'a self, endpoint: &'a str) -> LocalBoxFuture<'a, Result<Described, TargetError>>;
    /// `connections` of them, for this thread. Called inside a `LocalSet`.
    fn connect(
        &self,
        streams: Arc<[Stream]>,
        connections: usize,
    ) -> LocalBoxFuture<'_, Result<Rc<dyn Target>, TargetError>>;
}

/// The class in each row of an output: the arg-max of probabilities or scores, or the number where there is one a row.
pub(crate) fn classes(output: &Tensor, rows: usize) -> Vec<Option<i64>> {
    fn of<const N: usize>(data: &[u8], rows: usize, number: impl Fn([u8; N]) -> f64, whole: bool) -> Vec<Option<i64>> {
        let numbers: Vec<f64> = data.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)).collect();
        let width = numbers.len() / rows.max(1);
        let class = |row: &[f64]| match row {
            [one] if whole => Some(*one as i64),
            _ if row.iter().any(|value| value.is_nan()) => None,
            // The first of equals.
            _ => (0..row.len()).rev().max_by(|a, b| row[*a].total_cmp(&row[*b])).map(|class| class as i64),
        };
        if width == 0 { vec![None; rows] } else { numbers.chunks_exact(width).take(rows).map(class).collect() }
    }
    let data = &output.data;
    match output.dtype {
        DType::F32 => of::<4>(data, rows, |b| f64::from(f32::from_le_bytes(b)), false),
        DType::F64 => of::<8>(data, rows, f64::from_le_bytes, false),
        DType::I64 => of::<8>(data, rows, |b| i64::from_le_bytes(b) as f64, true),
        DType::I32 => of::<4>(data, rows, |b| f64::from(i32::from_le_bytes(b)), true),
        DType::U8 => of::<1>(data, rows, |b| f64::from(b[0]), true),
        _ => vec![None; rows],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_parsed_or_told_how_to_be_written() {
        let server = |model: Option<&str>| Server { authority: "h:8000".into(), model: model.map(str::to_owned) };
        assert_eq!(Address::parse("weir://a:7300,b:1"), Ok(Address::Weir(vec!["a:7300".into(), "b:1".into()])));
        assert_eq!(Address::parse("oip-http://h:8000/m"), Ok(Address::OipHttp(server(Some("m")))));
        assert_eq!(Address::parse("oip-grpc://h:8000"), Ok(Address::OipGrpc(server(None))));
        for bad in [
            "",
            "h:8000",
            "http://h:8000/m",
            "oip-http://h/m",
            "oip-http://h:99999/m",
            "oip-http://h:1/a/b",
            "weir://",
            "oip-http://h:1/a b",
            "oip-http://u@h:1/m",
        ] {
            assert!(Address::parse(bad).unwrap_err().to_string().contains("oip-http://host:8000/model"), "{bad}");
        }
    }

    #[test]
    fn the_answer_is_the_arg_max_or_the_number_itself() {
        let scores = Tensor::f32(&[3, 3], &[0.1, 0.8, 0.1, 0.4, 0.4, 0.2, f32::NAN, 1.0, 0.0]);
        assert_eq!(classes(&scores, 3), [Some(1), Some(0), None]);
        let numbers =
            Tensor::new(DType::I64, vec![2], [7i64, -1].iter().flat_map(|n| n.to_le_bytes()).collect()).unwrap();
        assert_eq!(classes(&numbers, 2), [Some(7), Some(-1)]);
        assert_eq!(classes(&Tensor::strings(&[1], &["a"]), 1), [None]);
        assert_eq!(classes(&Tensor::f32(&[0, 3], &[]), 2), [None, None]);
    }
}
