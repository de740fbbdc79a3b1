//! A folder of PNG and JPEG images, all of one size.

use std::path::{Path, PathBuf};

use weir_core::tensor::{DType, Tensor, TensorSpec};
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::DataError;

/// Pixels of all images, one byte a channel, `[rows, height, width, channels]`.
#[derive(Clone, Debug)]
pub struct Images {
    pixels: Vec<u8>,
    height: usize,
    width: usize,
    channels: usize,
}

struct Image {
    pixels: Vec<u8>,
    height: usize,
    width: usize,
    channels: usize,
}

/// Reads a folder and those in it, in the order of the names.
pub fn read(folder: &Path) -> Result<Images, DataError> {
    let mut paths = Vec::new();
    find(folder, &mut paths)?;
    paths.sort();
    let mut all: Option<Images> = None;
    for path in paths {
        let bytes = std::fs::read(&path).map_err(|cause| DataError::Read { path: path.clone(), cause })?;
        let format = |why: String| DataError::Format { path: path.clone(), why };
        let image = decode(&bytes).map_err(format)?;
        let all = all.get_or_insert_with(|| Images {
            pixels: Vec::new(),
            height: image.height,
            width: image.width,
            channels: image.channels,
        });
        if (image.height, image.width) != (all.height, all.width) {
            return Err(format(format!(
                "it is {} x {} pixels, and the first is {} x {}; make all one size",
                image.width, image.height, all.width, all.height
            )));
        }
        all.pixels.extend(to_channels(&image.pixels, image.channels, all.channels));
    }
    all.ok_or_else(|| DataError::Format {
        path: folder.to_owned(),
        why: "there is no image in it that ends in .png, .jpg or .jpeg".into(),
    })
}

fn find(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let read = |cause| DataError::Read { path: folder.to_owned(), cause };
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        let path = entry.path();
        let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default().to_ascii_lowercase();
        // Not through links: one that leads back would never end.
        if entry.file_type().map_err(read)?.is_dir() {
            find(&path, found)?;
        } else if ["png", "jpg", "jpeg"].contains(&kind.as_str()) {
            found.push(path);
        }
    }
    Ok(())
}

fn decode(bytes: &[u8]) -> Result<Image, String> {
    if bytes.starts_with(b"\x89PNG") {
        let mut decoder = png::Decoder::new(std::io::Cursor::new(bytes));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().map_err(|e| format!("it is no PNG image ({e})"))?;
        let mut pixels = vec![0; reader.output_buffer_size().ok_or("it is too large")?];
        let info = reader.next_frame(&mut pixels).map_err(|e| format!("it is no PNG image ({e})"))?;
        pixels.truncate(info.buffer_size());
        let channels = info.color_type.samples();
        return Ok(without_alpha(Image { pixels, height: info.height as usize, width: info.width as usize, channels }));
    }
    let mut decoder = zune_jpeg::JpegDecoder::new(ZCursor::new(bytes));
    decoder.decode_headers().map_err(|e| format!("it is no PNG or JPEG image ({e})"))?;
    let gray = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let (color, channels) = if gray { (ColorSpace::Luma, 1) } else { (ColorSpace::RGB, 3) };
    decoder.set_options(DecoderOptions::default().jpeg_set_out_colorspace(color));
    let pixels = decoder.decode().map_err(|e| format!("it is no JPEG image ({e})"))?;
    let (width, height) = decoder.dimensions().ok_or("it has no size")?;
    Ok(Image { pixels, height, width, channels })
}

fn without_alpha(image: Image) -> Image {
    if image.channels % 2 == 1 {
        return image;
    }
    let channels = image.channels - 1;
    let pixels = image.pixels.chunks_exact(image.channels).flat_map(|p| p[..channels].iter().copied()).collect();
    Image { pixels, channels, ..image }
}

/// Gray repeated, or colours weighed as ITU-R BT.601 does.
fn to_channels(pixels: &[u8], from: usize, to: usize) -> Vec<u8> {
    match (from, to) {
        (1, 3) => pixels.iter().flat_map(|&p| [p, p, p]).collect(),
        (3, 1) => pixels
            .chunks_exact(3)
            .map(|p| ((299 * u32::from(p[0]) + 587 * u32::from(p[1]) + 114 * u32::from(p[2]) + 500) / 1000) as u8)
            .collect(),
        _ => pixels.to_vec(),
    }
}

impl Images {
    /// How many.
    pub fn rows(&self) -> usize {
        self.pixels.len() / (self.height * self.width * self.channels).max(1)
    }

    /// In the type (u8 as they are, f32 from 0 to 1) and layout that `spec` wants: channels first, last, none, or all flat.
    pub fn tensor(&self, spec: Option<&TensorSpec>) -> Result<Tensor, String> {
        let (rows, h, w) = (self.rows() as u64, self.height as u64, self.width as u64);
        let Some(spec) = spec else {
            let shape = vec![rows, h, w, self.channels as u64];
            return Ok(Tensor { dtype: DType::U8, shape, data: self.pixels.clone() });
        };
        let fits = |dims: &[u64]| {
            [&spec.shape[..], spec.shape.get(1..).unwrap_or_default()]
                .iter()
                .any(|want| want.len() == dims.len() && want.iter().zip(dims).all(|(w, d)| w.is_none_or(|w| w == *d)))
        };
        // The image's own channels first, so that an open dimension converts nothing.
        let own = self.channels as u64;
        let layouts = [own, 4 - own].into_iter().flat_map(|c| {
            [(vec![c, h, w], c, true), (vec![h, w, c], c, false), (vec![c * h * w], c, false)].into_iter().chain(
                // A gray image needs no dimension for its channel.
                (c == 1).then(|| (vec![h, w], c, false)),
            )
        });
        let Some((dims, channels, first)) = layouts.into_iter().find(|(dims, ..)| fits(dims)) else {
            return Err(format!("images are {w} x {h} pixels, and {spec} is wanted"));
        };
        let mut pixels = to_channels(&self.pixels, self.channels, channels as usize);
        if first && channels == 3 {
            let plane = self.height * self.width;
            let image = |image: &[u8]| {
                (0..3).flat_map(|c| (0..plane).map(move |i| i * 3 + c)).map(|i| image[i]).collect::<Vec<_>>()
            };
            pixels = pixels.chunks_exact(plane * 3).flat_map(image).collect();
        }
        let data = match spec.dtype {
            DType::U8 => pixels,
            DType::F32 => pixels.iter().flat_map(|&p| (f32::from(p) / 255.0).to_le_bytes()).collect(),
            other => return Err(format!("images are u8 or f32, and {other} is wanted")),
        };
        Ok(Tensor { dtype: spec.dtype, shape: [&[rows], &dims[..]].concat(), data })
    }
}
