//! Tensors, rows of them, and signatures.

use capnp::struct_list;
use weir_core::tensor::{DType, Row, Signature, Tensor, TensorSpec, check};

use super::{BadMessage, count};
use crate::control_capnp::signature;
use crate::predict_capnp::{self, tensor, tensor_spec};

/// The wire's word for an element type.
pub fn dtype_to_wire(dtype: DType) -> predict_capnp::DType {
    use predict_capnp::DType as Wire;
    match dtype {
        DType::Bool => Wire::Bool,
        DType::U8 => Wire::U8,
        DType::U16 => Wire::U16,
        DType::U32 => Wire::U32,
        DType::U64 => Wire::U64,
        DType::I8 => Wire::I8,
        DType::I16 => Wire::I16,
        DType::I32 => Wire::I32,
        DType::I64 => Wire::I64,
        DType::F16 => Wire::F16,
        DType::Bf16 => Wire::Bf16,
        DType::F32 => Wire::F32,
        DType::F64 => Wire::F64,
        DType::String => Wire::String,
    }
}

/// The element type that the wire names.
pub fn dtype_from_wire(wire: predict_capnp::DType) -> DType {
    DType::ALL.into_iter().find(|dtype| dtype_to_wire(*dtype) == wire).expect("every enumerant has its type")
}

/// Writes one tensor.
pub fn write_tensor(mut b: tensor::Builder<'_>, name: &str, dtype: DType, shape: &[u64], data: &[u8]) {
    b.set_name(name);
    b.set_dtype(dtype_to_wire(dtype));
    write_shape(b.reborrow().init_shape(count(shape.len())), shape);
    b.set_data(data);
}

fn write_shape(mut list: capnp::primitive_list::Builder<'_, u64>, shape: &[u64]) {
    for (i, dim) in shape.iter().enumerate() {
        list.set(i as u32, *dim);
    }
}

/// A tensor that still lies in its message.
pub struct TensorView<'a> {
    /// As sent; empty where the order says which it is.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// Checked against type and shape.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// Copies it out of its message.
    pub fn to_tensor(&self) -> Tensor {
        Tensor { dtype: self.dtype, shape: self.shape.clone(), data: self.data.to_vec() }
    }
}

/// Checks a tensor without copying its data.
pub fn read_tensor(r: tensor::Reader<'_>) -> Result<TensorView<'_>, BadMessage> {
    let dims = r.get_shape()?;
    if dims.len() > 64 {
        return Err(BadMessage::new("a tensor with more than 64 dimensions"));
    }
    let view = TensorView {
        name: r.get_name()?.to_str()?,
        dtype: dtype_from_wire(r.get_dtype()?),
        shape: dims.iter().collect(),
        data: r.get_data()?,
    };
    check(view.dtype, &view.shape, view.data).map_err(|bad| {
        // What a stranger named, short enough to repeat.
        let name: String = view.name.chars().take(80).collect();
        BadMessage::new(format!("tensor {name:?}: {bad}"))
    })?;
    Ok(view)
}

/// Stacks rows that merge (or writes the tensors of a single whole row as they are) straight into the message.
/// Tensor `i` gets the name `names[i]`, or none.
pub fn write_rows(mut list: struct_list::Builder<'_, tensor::Owned>, names: &[&str], rows: &[Row]) {
    let Some(first) = rows.first() else { return };
    for i in 0..first.tensors.len() {
        let mut b = list.reborrow().get(i as u32);
        b.set_name(names.get(i).copied().unwrap_or(""));
        b.set_dtype(dtype_to_wire(first.tensors[i].dtype));
        let mut shape = first.shape(i).to_vec();
        if first.row.is_some() {
            shape.insert(0, rows.len() as u64);
        }
        write_shape(b.reborrow().init_shape(count(shape.len())), &shape);
        let parts = Row::data_of(rows, i);
        let data = b.init_data(count(parts.iter().map(|bytes| bytes.len()).sum()));
        let mut at = 0;
        for bytes in parts {
            data[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        }
    }
}

/// Writes tensor `i` of one query's row, without the first dimension where it is a row.
pub fn write_row_tensor(b: tensor::Builder<'_>, name: &str, row: &Row, i: usize) {
    write_tensor(b, name, row.tensors[i].dtype, row.shape(i), row.data(i));
}

/// Writes a declared tensor.
pub fn write_spec(mut b: tensor_spec::Builder<'_>, spec: &TensorSpec) {
    b.set_name(&spec.name);
    b.set_dtype(dtype_to_wire(spec.dtype));
    let mut shape = b.init_shape(count(spec.shape.len()));
    for (i, dim) in spec.shape.iter().enumerate() {
        shape.set(i as u32, dim.map_or(-1, |dim| dim as i64));
    }
}

/// Reads a declared tensor.
pub fn read_spec(r: tensor_spec::Reader<'_>) -> Result<TensorSpec, BadMessage> {
    Ok(TensorSpec {
        name: r.get_name()?.to_str()?.to_owned(),
        dtype: dtype_from_wire(r.get_dtype()?),
        shape: r.get_shape()?.iter().map(|dim| u64::try_from(dim).ok()).collect(),
    })
}

/// Writes a list of declared tensors.
pub fn write_specs(mut list: struct_list::Builder<'_, tensor_spec::Owned>, specs: &[TensorSpec]) {
    for (i, spec) in specs.iter().enumerate() {
        write_spec(list.reborrow().get(i as u32), spec);
    }
}

/// Reads a list of declared tensors.
pub fn read_specs(list: struct_list::Reader<'_, tensor_spec::Owned>) -> Result<Vec<TensorSpec>, BadMessage> {
    list.iter().map(read_spec).collect()
}

/// Writes a signature.
pub fn write_signature(mut b: signature::Builder<'_>, signature: &Signature) {
    write_specs(b.reborrow().init_inputs(count(signature.inputs.len())), &signature.inputs);
    write_specs(b.init_outputs(count(signature.outputs.len())), &signature.outputs);
}

/// Reads a signature.
pub fn read_signature(r: signature::Reader<'_>) -> Result<Signature, BadMessage> {
    Ok(Signature { inputs: read_specs(r.get_inputs()?)?, outputs: read_specs(r.get_outputs()?)? })
}
