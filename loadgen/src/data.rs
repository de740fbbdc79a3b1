//! What queries are made of: rows read from a file or a folder, and the right answer for each.

mod images;
pub(crate) mod json_lines;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use weir_core::tensor::{DType, Tensor, TensorSpec};

use crate::npy::{self, NpyError};
use images::Images;
use json_lines::Lines;

/// Why a file gives no queries, or not those that an endpoint takes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum DataError {
    #[error("cannot read {path}: {cause}")]
    Read {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("{0}")]
    Npy(#[from] NpyError),
    #[error("{path} gives no queries: {why}")]
    Format { path: PathBuf, why: String },
    #[error("{path} does not fit: {why}")]
    Fit { path: PathBuf, why: String },
}

/// Rows to ask for. All inputs have the same first dimension: the rows.
#[derive(Clone, Debug)]
pub struct Data {
    path: PathBuf,
    source: Source,
    rows: usize,
    labels: Option<Vec<i64>>,
    /// The endpoint's inputs have no dimension for rows: a row is sent as it is, one a query.
    whole: bool,
}

#[derive(Clone, Debug)]
enum Source {
    Arrays(Vec<Column>),
    Images(Images),
    Lines(Lines),
}

/// One input, with what finds a row at once.
#[derive(Clone, Debug)]
struct Column {
    name: String,
    tensor: Tensor,
    /// Where each row of strings begins, and the end; empty where all rows are equally long.
    starts: Vec<usize>,
}

impl Column {
    fn new(name: String, tensor: Tensor) -> Column {
        let starts = match tensor.dtype {
            DType::String => {
                let rows = tensor.rows().unwrap_or_default();
                rows.iter().map(|row| row.start).chain([tensor.data.len()]).collect()
            }
            _ => Vec::new(),
        };
        Column { name, tensor, starts }
    }

    fn row(&self, row: usize) -> &[u8] {
        if self.starts.is_empty() {
            let size = self.tensor.data.len() / self.tensor.shape[0].max(1) as usize;
            &self.tensor.data[row * size..(row + 1) * size]
        } else {
            &self.tensor.data[self.starts[row]..self.starts[row + 1]]
        }
    }
}

impl Data {
    /// Reads `.npy` (one input), `.npz` (inputs by name), `.jsonl` (a JSON value a line: an array is the only input, an
    /// object names inputs and may hold a `label`), or a folder of PNG and JPEG images, in the order of their names.
    pub fn read(path: &Path) -> Result<Data, DataError> {
        let format = |why: String| DataError::Format { path: path.to_owned(), why };
        let read = || std::fs::read(path).map_err(|cause| DataError::Read { path: path.to_owned(), cause });
        let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default().to_ascii_lowercase();
        let mut labels = None;
        let (source, rows) = if path.is_dir() {
            let images = images::read(path)?;
            let rows = images.rows();
            (Source::Images(images), rows)
        } else if kind == "npz" {
            let arrays = npz(&read()?).map_err(format)?;
            let rows = arrays.first().and_then(|(_, first)| first.shape.first().copied()).unwrap_or(0);
            if let Some((name, odd)) = arrays.iter().find(|(_, array)| array.shape.first() != Some(&rows)) {
                return Err(format(format!("{name} has shape {:?}, and others have {rows} rows", odd.shape)));
            }
            let columns = arrays.into_iter().map(|(name, array)| Column::new(name, array)).collect();
            (Source::Arrays(columns), rows as usize)
        } else if ["jsonl", "ndjson", "json"].contains(&kind.as_str()) {
            let text = String::from_utf8(read()?).map_err(|_| format("it is not UTF-8 text".into()))?;
            let lines;
            (lines, labels) = json_lines::parse(&text).map_err(format)?;
            let rows = lines.rows;
            (Source::Lines(lines), rows)
        } else {
            let tensor = npy::read(path)?;
            let Some(rows) = tensor.shape.first().copied() else {
                return Err(format("it is one number, without a dimension for rows".into()));
            };
            (Source::Arrays(vec![Column::new(String::new(), tensor)]), rows as usize)
        };
        if rows == 0 {
            return Err(format("it has no rows".into()));
        }
        if rows > u32::MAX as usize {
            return Err(format("it has more than 4 billion rows".into()));
        }
        Ok(Data { path: path.to_owned(), source, rows, labels, whole: false })
    }

    /// One unnamed input made in memory. Panics where it has no rows.
    pub fn of(tensor: Tensor) -> Data {
        let rows = tensor.shape.first().copied().unwrap_or(0) as usize;
        assert!(rows > 0, "data has rows");
        let source = Source::Arrays(vec![Column::new(String::new(), tensor)]);
        Data { path: PathBuf::new(), source, rows, labels: None, whole: false }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The right answers that the data itself brings.
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    /// Whether a row goes out as it is, without a dimension for rows in front: then one row a query.
    pub fn whole(&self) -> bool {
        self.whole
    }

    /// As `inputs` want it: names, element types and shapes checked, images and JSON converted to them. Where the target
    /// does not tell its inputs (`inputs` is empty), images become u8 `[height, width, channels]` and numbers f32.
    pub fn fit(self, inputs: &[TensorSpec]) -> Result<Data, DataError> {
        let Data { path, source, rows, labels, .. } = self;
        let wrong = |why: String| DataError::Fit { path: path.clone(), why };
        let columns = match source {
            Source::Arrays(mut columns) => {
                if let ([column], [spec]) = (columns.as_mut_slice(), inputs)
                    && column.name.is_empty()
                {
                    column.name.clone_from(&spec.name);
                }
                columns
            }
            Source::Images(images) => {
                let spec = match inputs {
                    [] => None,
                    [spec] => Some(spec),
                    _ => return Err(wrong(format!("images are one input, and {} are wanted", inputs.len()))),
                };
                let tensor = images.tensor(spec).map_err(wrong)?;
                vec![Column::new(spec.map(|spec| spec.name.clone()).unwrap_or_default(), tensor)]
            }
            Source::Lines(lines) => {
                let tensors = lines.tensors(inputs).map_err(wrong)?;
                tensors.into_iter().map(|(name, tensor)| Column::new(name, tensor)).collect()
            }
        };
        let mut whole = None;
        for spec in inputs {
            let Some(column) = columns.iter().find(|column| column.name == spec.name) else {
                let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
                return Err(wrong(format!(
                    "the input {:?} is not in it (there is {}); name several inputs in an .npz file or in JSON lines",
                    spec.name,
                    if names.iter().all(|name| name.is_empty()) { "one array".into() } else { names.join(", ") }
                )));
            };
            let (dtype, shape) = (column.tensor.dtype, &column.tensor.shape);
            let mut one = shape.clone();
            one[0] = 1;
            let by_row = spec.shape.len() == shape.len()
                && TensorSpec { shape: [&[None], &spec.shape[1..]].concat(), ..spec.clone() }.accepts(dtype, &one);
            let as_it_is = spec.accepts(dtype, &shape[1..]);
            if !by_row && !as_it_is {
                return Err(wrong(format!("a row is {dtype} {:?}, and {spec} is wanted", &shape[1..])));
            }
            if *whole.get_or_insert(!by_row) == by_row {
                return Err(wrong("some inputs have a dimension for rows and some have none".into()));
            }
        }
        if let Some(extra) = columns.iter().find(|c| !inputs.is_empty() && inputs.iter().all(|i| i.name != c.name)) {
            return Err(wrong(format!("no input is called {:?}; leave it out", extra.name)));
        }
        Ok(Data { source: Source::Arrays(columns), whole: whole.unwrap_or(false), path, rows, labels })
    }

    /// The inputs of a query for these rows, in order. Panics where [`Data::fit`] was not called or a row is not there.
    pub fn take(&self, rows: &[u32]) -> Vec<(String, Tensor)> {
        let Source::Arrays(columns) = &self.source else { panic!("data is fitted before it is asked for") };
        columns
            .iter()
            .map(|column| {
                let mut data = Vec::new();
                for row in rows {
                    data.extend_from_slice(column.row(*row as usize));
                }
                let mut shape = column.tensor.shape.clone();
                shape[0] = rows.len() as u64;
                if self.whole {
                    shape.remove(0);
                }
                (column.name.clone(), Tensor { dtype: column.tensor.dtype, shape, data })
            })
            .collect()
    }
}

/// The right answers: whole numbers from an `.npy` file, an `.npz` file of one array, or text with one a line.
pub fn read_labels(path: &Path) -> Result<Vec<i64>, DataError> {
    let format = |why: String| DataError::Format { path: path.to_owned(), why };
    let read = || std::fs::read(path).map_err(|cause| DataError::Read { path: path.to_owned(), cause });
    let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default().to_ascii_lowercase();
    let tensor = match kind.as_str() {
        "txt" | "csv" => {
            let text = String::from_utf8(read()?).map_err(|_| format("it is not UTF-8 text".into()))?;
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            return lines
                .map(|(i, line)| line.trim().parse().map_err(|_| format(format!("line {} is no whole number", i + 1))))
                .collect();
        }
        "npz" => match <[_; 1]>::try_from(npz(&read()?).map_err(format)?) {
            Ok([(_, tensor)]) => tensor,
            Err(several) => return Err(format(format!("it has {} arrays; labels are one", several.len()))),
        },
        _ => npy::read(path)?,
    };
    npy::labels(&tensor).ok_or_else(|| format("labels are whole numbers that fit 63 bits".into()))
}

/// The arrays of an `.npz` file by name, in the file's order.
fn npz(bytes: &[u8]) -> Result<Vec<(String, Tensor)>, String> {
    /// Arrays are unpacked into memory: more than this is a mistake or an attack.
    const UNPACKED_MAX: u64 = 8 << 30;
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bytes)).map_err(|e| format!("it is no .npz ({e})"))?;
    let mut arrays = Vec::new();
    let mut left = UNPACKED_MAX;
    for i in 0..archive.len() {
        let file = archive.by_index(i).map_err(|e| format!("its member {i} cannot be unpacked ({e})"))?;
        let name = file.name().strip_suffix(".npy").unwrap_or(file.name()).to_owned();
        let mut unpacked = Vec::new();
        let read = std::io::Read::read_to_end(&mut std::io::Read::take(file, left + 1), &mut unpacked);
        let read = read.map_err(|e| format!("{name} cannot be unpacked ({e})"))? as u64;
        left = left.checked_sub(read).ok_or("it unpacks to more than 8 GiB")?;
        arrays.push((name.clone(), npy::parse(&unpacked).map_err(|why| format!("{name}: {why}"))?));
    }
    Ok(arrays)
}
