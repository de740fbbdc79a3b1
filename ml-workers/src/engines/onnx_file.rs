//! A look into an ONNX file before the runtime sees it: does it keep data in other files?
//!
//! The runtime would open whatever path the file names. Only the few fields on the way to a tensor's data location are
//! walked; the rest is skipped by length. Field numbers: onnx.proto of ONNX 1.22.

/// The first location outside the file that its tensors name; an error where it is no protobuf message at all.
pub fn external_data(model: &[u8]) -> Result<Option<String>, &'static str> {
    if model.is_empty() {
        return Err("the file is empty");
    }
    // ModelProto: graph = 7, functions = 25 hold nodes; training_info = 20 holds graphs and is not run.
    for field in fields(model) {
        let found = match field? {
            (7, graph) => in_graph(graph, 0)?,
            (25, function) => in_nodes(function, 7, 0)?,
            _ => None,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Graphs within graphs (the branches of an If); the runtime itself gives up earlier.
const DEPTH_MAX: u32 = 32;

fn in_graph(graph: &[u8], depth: u32) -> Result<Option<String>, &'static str> {
    // GraphProto: node = 1, initializer = 5, sparse_initializer = 15 { values = 1, indices = 2 }.
    for field in fields(graph) {
        let found = match field? {
            (5, tensor) => in_tensor(tensor)?,
            (15, sparse) => in_sparse(sparse)?,
            _ => None,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    in_nodes(graph, 1, depth)
}

fn in_sparse(sparse: &[u8]) -> Result<Option<String>, &'static str> {
    for field in fields(sparse) {
        if let (1 | 2, tensor) = field?
            && let Some(found) = in_tensor(tensor)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn in_nodes(holder: &[u8], number: u64, depth: u32) -> Result<Option<String>, &'static str> {
    if depth > DEPTH_MAX {
        return Err("its graphs are nested too deeply");
    }
    // NodeProto: attribute = 5. AttributeProto: t = 5, g = 6, tensors = 10, graphs = 11, sparse_tensor = 22, sparse_tensors = 23.
    for node in fields(holder) {
        let (at, node) = node?;
        if at != number {
            continue;
        }
        for attribute in fields(node) {
            let (5, attribute) = attribute? else { continue };
            for value in fields(attribute) {
                let found = match value? {
                    (5 | 10, tensor) => in_tensor(tensor)?,
                    (6 | 11, graph) => in_graph(graph, depth + 1)?,
                    (22 | 23, sparse) => in_sparse(sparse)?,
                    _ => None,
                };
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
    }
    Ok(None)
}

fn in_tensor(tensor: &[u8]) -> Result<Option<String>, &'static str> {
    // TensorProto: external_data = 13 { key = 1, value = 2 }.
    for field in fields(tensor) {
        let (13, entry) = field? else { continue };
        let mut location = String::from("unnamed");
        for part in fields(entry) {
            if let (2, value) = part? {
                location = String::from_utf8_lossy(value).chars().take(100).collect();
            }
        }
        return Ok(Some(location));
    }
    Ok(None)
}

/// Walks the length-delimited fields of a message as (number, bytes); others are skipped.
fn fields(message: &[u8]) -> impl Iterator<Item = Result<(u64, &[u8]), &'static str>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let Some(key) = varint(&mut rest) else { return Some(Err(TORN)) };
            let length = match key & 7 {
                0 => {
                    if varint(&mut rest).is_none() {
                        return Some(Err(TORN));
                    }
                    continue;
                }
                1 => 8,
                5 => 4,
                2 => match varint(&mut rest).and_then(|n| usize::try_from(n).ok()) {
                    Some(length) => length,
                    None => return Some(Err(TORN)),
                },
                _ => return Some(Err("it is no ONNX model")),
            };
            if length > rest.len() {
                rest = &[];
                return Some(Err(TORN));
            }
            let (field, after) = rest.split_at(length);
            rest = after;
            if key & 7 == 2 {
                return Some(Ok((key >> 3, field)));
            }
        }
        None
    })
}

const TORN: &str = "it is no ONNX model, or was cut short";

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2, bytes.len() as u8];
        field.extend(bytes);
        field
    }

    #[test]
    fn data_in_another_file_is_found_wherever_a_tensor_can_be() {
        let entry = [field(1, b"location"), field(2, b"../weights.bin")].concat();
        let tensor = field(13, &entry);
        let found = Ok(Some("../weights.bin".to_owned()));
        assert_eq!(external_data(&field(7, &field(5, &tensor))), found, "initializer");
        let nested = field(7, &field(1, &field(5, &field(6, &field(5, &tensor)))));
        assert_eq!(external_data(&nested), found, "in a branch");
        assert_eq!(external_data(&field(7, &field(1, &field(5, &field(5, &tensor))))), found, "constant");
        assert_eq!(external_data(&field(7, &field(5, &field(9, b"raw")))), Ok(None));
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let model = field(7, &field(5, &field(9, b"raw data")));
        assert!((1..model.len()).all(|n| external_data(&model[..n]).is_err()));
        assert!(external_data(b"").is_err());
        assert!(external_data(b"\x0f\x0f\x0f").is_err());
    }
}
