//! What HTTP and gRPC of the open inference protocol share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use weir_core::outcome::{Outcome, Rejection};
use weir_core::tensor::{DType, Tensor, TensorSpec, check};
pub use weir_schema::oip::{bytes_of, dtype, word};

use super::{Described, Reply, RowReply, Stream, classes};

/// How long connecting, and questions before the run, may take.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes: Triton's own limit for what it inflates.
pub const ANSWER_MAX: usize = 64 << 20;

/// Calls of one thread that are open at once, at most: over HTTP each has a connection, and file descriptors run out soon after.
pub const OPEN_MAX: usize = 1000;

/// Places for calls that are open.
pub struct Places(Semaphore);

impl Places {
    /// So many.
    pub fn new(places: usize) -> Places {
        Places(Semaphore::new(places))
    }

    /// Waits for a place; with it comes what is left of the deadline. As any pool of connections does it, what finds none in time is given up and
    /// not sent: a server would work for an answer that nobody waits for any more.
    pub async fn take(&self, deadline: Duration) -> Result<(SemaphorePermit<'_>, Duration), Reply> {
        if let Ok(place) = self.0.try_acquire() {
            return Ok((place, deadline));
        }
        let began = Instant::now();
        match tokio::time::timeout(deadline, self.0.acquire()).await {
            Ok(place) => {
                let left = deadline.saturating_sub(began.elapsed()).max(Duration::from_micros(1));
                Ok((place.expect("never closed"), left))
            }
            Err(_) => {
                let why = "its deadline passed before it could be sent: so many calls are open already that the server does not answer";
                Err(Reply::none(Outcome::Expired, why))
            }
        }
    }
}

/// An input as the metadata tells it; a dimension below 0 is open.
pub fn spec(name: &str, datatype: &str, shape: &[i64]) -> Result<TensorSpec, String> {
    let dtype = dtype(datatype).ok_or_else(|| format!("its input {name} has an unknown datatype {datatype}"))?;
    let shape = shape.iter().map(|dim| u64::try_from(*dim).ok()).collect();
    Ok(TensorSpec { name: name.to_owned(), dtype, shape })
}

/// What a model's metadata amounts to: the only output is what labels are compared with.
pub fn described(inputs: Vec<TensorSpec>, outputs: &[String]) -> Described {
    let label_output = match outputs {
        [only] => Some(only.clone()),
        _ => None,
    };
    Described { inputs, label_output, deadline: None }
}

/// An output that must be there, as a tensor whose bytes fit.
pub fn tensor(name: &str, dtype: DType, shape: Vec<u64>, data: Vec<u8>) -> Result<Tensor, String> {
    check(dtype, &shape, &data).map_err(|bad| format!("its output {name}: {bad}"))?;
    Ok(Tensor { dtype, shape, data })
}

/// An answer: one row for each that was asked, with the class that the label output tells.
pub fn answered(
    streams: &Arc<[Stream]>,
    stream: usize,
    rows: usize,
    outputs: &[(String, Tensor)],
    stage: &str,
) -> Result<Reply, String> {
    let wanted = streams[stream].compared();
    let mut labels = vec![None; rows];
    if let Some(wanted) = wanted {
        let (_, output) =
            outputs.iter().find(|(name, _)| name == wanted).ok_or_else(|| format!("it lacks the output {wanted}"))?;
        if !streams[stream].data.whole() && output.shape.first() != Some(&(rows as u64)) {
            return Err(format!("its output {wanted} has shape {:?} for {rows} rows", output.shape));
        }
        labels = classes(output, rows);
    }
    Ok(Reply {
        outcome: Outcome::Answered,
        message: String::new(),
        rows: labels
            .into_iter()
            .map(|label| RowReply { label, stage: stage.to_owned(), expected_right: None })
            .collect(),
        degraded: false,
        price: 0.0,
        expected_loss: 0.0,
    })
}

/// It ran, and what came back is not of the protocol.
pub fn not_understood(why: &str) -> Reply {
    Reply::none(Outcome::Failed, format!("the answer is not of the open inference protocol: {why}"))
}

/// No connection: nothing was asked.
pub fn not_sent(authority: &str, why: impl std::fmt::Display) -> Reply {
    Reply::none(Outcome::Rejected(Rejection::NoReplica), format!("no connection to {authority}: {why}"))
}
