//! The engines.
pub mod kernel;
pub mod onnx;
mod onnx_file;
pub mod synthetic;
