use super::*;

fn spec(name: &str, dtype: DType, shape: &[Option<u64>]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
}

fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn read(name: &str, bytes: &[u8]) -> Result<Data, DataError> {
    let (_folder, path) = file(name, bytes);
    Data::read(&path)
}

#[test]
fn rows_are_taken_in_the_order_asked_for() {
    let tensor = Tensor::f32(&[3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let data = read("x.npy", &npy::to_bytes(&tensor).unwrap()).unwrap();
    let data = data.fit(&[spec("x", DType::F32, &[None, Some(2)])]).unwrap();
    assert_eq!(data.rows(), 3);
    assert_eq!(data.take(&[2, 0]), [("x".to_owned(), Tensor::f32(&[2, 2], &[4.0, 5.0, 0.0, 1.0]))]);
    let words = Data::of(Tensor::strings(&[3, 1], &["a", "", "xyz"])).fit(&[]).unwrap();
    assert_eq!(words.take(&[2, 1])[0].1, Tensor::strings(&[2, 1], &["xyz", ""]));
}

/// Taking a row must not walk the others: a query would cost as much as the file is long.
#[test]
fn a_row_of_a_long_file_costs_what_a_row_of_a_short_one_does() {
    let data = Data::of(Tensor { dtype: DType::U8, shape: vec![50_000_000, 1], data: vec![7; 50_000_000] });
    // Listing 50 million rows each time would take minutes.
    for i in 0..1000 {
        assert_eq!(data.take(&[i * 49_999])[0].1.data, [7]);
    }
}

#[test]
fn an_archive_gives_inputs_by_name() {
    use std::io::Write;
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, array) in [("h.npy", Tensor::f32(&[2, 1], &[1.0, 2.0])), ("x.npy", Tensor::f32(&[2], &[3.0, 4.0]))] {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(&npy::to_bytes(&array).unwrap()).unwrap();
    }
    let bytes = archive.finish().unwrap().into_inner();
    let wanted = [spec("x", DType::F32, &[None]), spec("h", DType::F32, &[None, None])];
    let data = read("d.npz", &bytes).unwrap().fit(&wanted).unwrap();
    assert_eq!(data.take(&[1])[0], ("h".to_owned(), Tensor::f32(&[1, 1], &[2.0])));
    assert_eq!(data.take(&[1])[1], ("x".to_owned(), Tensor::f32(&[1], &[4.0])));
    let missing = read("d.npz", &bytes).unwrap().fit(&[spec("z", DType::F32, &[None])]).unwrap_err().to_string();
    assert!(missing.contains("\"z\" is not in it (there is h, x)"), "{missing}");
    let extra = read("d.npz", &bytes).unwrap().fit(&wanted[..1]).unwrap_err().to_string();
    assert!(extra.contains("no input is called \"h\""), "{extra}");
    for cut in 0..bytes.len() {
        assert!(read("d.npz", &bytes[..cut]).is_err());
    }
}

#[test]
fn json_lines_take_the_type_that_is_wanted_and_bring_labels() {
    let text = b"{\"x\": [[1, 2], [3, 4]], \"label\": 7}\n\n{\"x\": [[5, 6], [7, 8]], \"label\": 9}\n";
    let data = read("d.jsonl", text).unwrap().fit(&[spec("x", DType::I32, &[None, Some(2), Some(2)])]).unwrap();
    assert_eq!(data.labels(), Some(&[7, 9][..]));
    let want: Vec<u8> = [5i32, 6, 7, 8].iter().flat_map(|n| n.to_le_bytes()).collect();
    assert_eq!(data.take(&[1])[0].1, Tensor::new(DType::I32, vec![1, 2, 2], want).unwrap());
    let flat = read("d.jsonl", b"[1,2,3,4]").unwrap().fit(&[spec("x", DType::F32, &[None, Some(2), Some(2)])]).unwrap();
    assert_eq!(flat.take(&[0])[0].1, Tensor::f32(&[1, 2, 2], &[1.0, 2.0, 3.0, 4.0]));
    let words = read("d.jsonl", b"\"a\"\n\"b\"").unwrap().fit(&[spec("t", DType::String, &[None])]).unwrap();
    assert_eq!(words.take(&[1])[0].1, Tensor::strings(&[1], &["b"]));

    let why = |text: &[u8]| read("d.jsonl", text).unwrap_err().to_string();
    assert!(why(b"[1,2]\n[1,2,3]").contains("line 2: it has not the shape"), "{}", why(b"[1,2]\n[1,2,3]"));
    assert!(why(b"[1]\nnonsense").contains("line 2: it is no JSON"));
    assert!(why(b"{\"x\":1,\"label\":1}\n{\"x\":1}").contains("1 of 2 lines have a label"));
    assert!(why(b"{\"x\":1}\n{\"y\":1}").contains("no input \"y\""));
    assert!(why(b"").contains("no rows"));
    let wrong = read("d.jsonl", b"[300]").unwrap().fit(&[spec("x", DType::U8, &[None, Some(1)])]).unwrap_err();
    assert!(wrong.to_string().contains("300 in \"x\" is no u8"), "{wrong}");
}

fn png(width: u32, height: u32, color: png::ColorType, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    bytes
}

#[test]
fn a_folder_of_images_takes_the_layout_that_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("inner")).unwrap();
    let rgba = [10, 20, 30, 255, 40, 50, 60, 0];
    std::fs::write(folder.path().join("b.png"), png(2, 1, png::ColorType::Rgba, &rgba)).unwrap();
    std::fs::write(folder.path().join("inner/c.PNG"), png(2, 1, png::ColorType::Grayscale, &[1, 2])).unwrap();
    std::fs::write(folder.path().join("readme.txt"), "not an image").unwrap();
    let take = |dtype, shape: &[Option<u64>]| {
        Data::read(folder.path()).unwrap().fit(&[spec("x", dtype, shape)]).map(|data| data.take(&[0, 1])[0].1.clone())
    };
    let last = take(DType::U8, &[None, Some(1), Some(2), Some(3)]).unwrap();
    assert_eq!((last.shape, last.data), (vec![2, 1, 2, 3], vec![10, 20, 30, 40, 50, 60, 1, 1, 1, 2, 2, 2]));
    let first = take(DType::U8, &[None, Some(3), None, None]).unwrap();
    assert_eq!((first.shape, first.data), (vec![2, 3, 1, 2], vec![10, 40, 20, 50, 30, 60, 1, 2, 1, 2, 1, 2]));
    let gray = take(DType::F32, &[None, Some(2)]).unwrap();
    assert_eq!(gray, Tensor::f32(&[2, 2], &[18.0 / 255.0, 48.0 / 255.0, 1.0 / 255.0, 2.0 / 255.0]));
    let wrong = take(DType::U8, &[None, Some(28), Some(28)]).unwrap_err().to_string();
    assert!(wrong.contains("images are 2 x 1 pixels, and x u8[-,28,28] is wanted"), "{wrong}");

    std::fs::write(folder.path().join("d.png"), png(1, 1, png::ColorType::Grayscale, &[1])).unwrap();
    let odd = Data::read(folder.path()).unwrap_err().to_string();
    assert!(odd.contains("make all one size"), "{odd}");
    std::fs::write(folder.path().join("a.jpg"), "no image").unwrap();
    assert!(
        Data::read(folder.path()).unwrap_err().to_string().contains("a.jpg gives no queries: it is no PNG or JPEG")
    );
    assert!(Data::read(tempfile::tempdir().unwrap().path()).unwrap_err().to_string().contains("there is no image"));
}

#[test]
fn a_jpeg_is_read() {
    // 8 x 8, one gray, baseline; made by hand: one table each, and a block whose only coefficient is zero.
    let mut jpeg = vec![0xff, 0xd8, 0xff, 0xdb, 0, 67, 0];
    jpeg.extend([1; 64]);
    jpeg.extend([0xff, 0xc0, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0]);
    for class in [0x00, 0x10] {
        jpeg.extend([0xff, 0xc4, 0, 20, class, 1]);
        jpeg.extend([0; 15]);
        jpeg.push(0);
    }
    jpeg.extend([0xff, 0xda, 0, 8, 1, 1, 0x00, 0, 63, 0, 0x3f, 0xff, 0xd9]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.jpeg"), &jpeg).unwrap();
    let data = Data::read(folder.path()).unwrap().fit(&[spec("x", DType::U8, &[None, Some(64)])]).unwrap();
    assert_eq!(data.take(&[0])[0].1.data, [128; 64]);
}

#[test]
fn data_that_an_endpoint_does_not_take_is_told_apart_before_anything_is_sent() {
    let fit = |tensor: Tensor, spec: TensorSpec| Data::of(tensor).fit(&[spec]).map(|data| data.whole());
    let x = |shape: &[Option<u64>]| spec("x", DType::F32, shape);
    assert!(!fit(Tensor::f32(&[2, 3], &[0.0; 6]), x(&[Some(64), Some(3)])).unwrap(), "rows are the caller's choice");
    assert!(fit(Tensor::f32(&[2, 3], &[0.0; 6]), x(&[Some(3)])).unwrap(), "no dimension for rows");
    let why = fit(Tensor::f32(&[2, 3], &[0.0; 6]), x(&[None, Some(4)])).unwrap_err().to_string();
    assert!(why.contains("a row is f32 [3], and x f32[-,4] is wanted"), "{why}");
    let whole = Data::of(Tensor::f32(&[2, 3], &[0.0; 6])).fit(&[x(&[Some(3)])]).unwrap();
    assert_eq!(whole.take(&[1])[0].1.shape, [3]);
}

#[test]
fn labels_are_read_from_arrays_and_text() {
    let labels = |name: &str, bytes: &[u8]| {
        let (_folder, path) = file(name, bytes);
        read_labels(&path)
    };
    let array = Tensor::new(DType::U64, vec![2], [3u64, 5].iter().flat_map(|n| n.to_le_bytes()).collect()).unwrap();
    assert_eq!(labels("y.npy", &npy::to_bytes(&array).unwrap()).unwrap(), [3, 5]);
    assert_eq!(labels("y.txt", b"3\n-5\n\n").unwrap(), [3, -5]);
    assert!(labels("y.txt", b"3\nx").unwrap_err().to_string().contains("line 2 is no whole number"));
    let huge = Tensor::new(DType::U64, vec![1], u64::MAX.to_le_bytes().to_vec()).unwrap();
    assert!(labels("y.npy", &npy::to_bytes(&huge).unwrap()).is_err());
    assert!(read_labels(Path::new("nowhere.npy")).unwrap_err().to_string().contains("cannot read nowhere.npy"));
}
