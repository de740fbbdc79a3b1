//! Models with rows of several lengths, and with batches of few sizes, as a user declares and asks them.

use serde_json::Value;
use weir_tests::processes::{Cluster, npy, root};

fn file(model: &str, more: &str) -> String {
    let path = root().join(format!("tests/models/{model}.onnx"));
    format!(
        "[[model]]\nname = \"{model}\"\nversion = \"1\"\npath = \"{}\"\n{more}\n[[endpoint]]\nname = \"{model}\"\nmodel = \"{model}@1\"\ndeadline = \"10s\"\n",
        path.display()
    )
}

const PAD: &str = "allowed_batch_sizes = [1, 4]\npad = { mask = \"mask\", inputs = { tokens = 9 }, buckets = [4, 8], outputs = [\"hidden\"] }";

#[test]
fn rows_of_several_lengths_are_answered_at_their_own_length() {
    let cluster = Cluster::start(1, 1);
    let weirfile = cluster.write("masked.toml", file("masked", PAD));
    cluster.ok(&["apply", "-f", &weirfile]);
    assert!(cluster.ok(&["apply", "-f", &weirfile]).lines().all(|line| line.ends_with("unchanged")));
    for length in [3u64, 4, 7, 20] {
        let values: Vec<f32> = (0..2 * length).map(|i| i as f32).collect();
        let tokens = cluster.write("tokens.npy", npy(&[2, length], &values));
        let mask = cluster.write("mask.npy", npy(&[2, length], &vec![1.0; 2 * length as usize]));
        let (tokens, mask) = (format!("tokens={tokens}"), format!("mask={mask}"));
        let out = cluster.ok(&["predict", "masked", "--input", &tokens, "--input", &mask, "-o", "json"]);
        for (row, line) in out.lines().enumerate() {
            let answer: Value = serde_json::from_str(line).expect("one object a line");
            let own = &values[row * length as usize..][..length as usize];
            let hidden: Vec<Value> = own.iter().map(|value| f64::from(2.0 * value).into()).collect();
            assert_eq!(answer["outputs"]["hidden"]["data"], Value::from(hidden), "{answer}");
            let mean = own.iter().sum::<f32>() / length as f32;
            assert_eq!(answer["outputs"]["mean"]["data"][0], f64::from(mean), "{answer}");
        }
    }
    let told = cluster.ok(&["describe", "model", "masked@1"]);
    assert!(told.contains("1, 4") && told.contains("4, 8"), "{told}");
}

#[test]
fn what_cannot_be_filled_up_is_refused_with_the_reason() {
    let cluster = Cluster::start(1, 1);
    let weirfile = cluster.write("unmasked.toml", file("unmasked", PAD));
    let said = cluster.fails(1, &["apply", "-f", &weirfile]);
    assert!(said.contains("does not heed its mask"), "{said}");
    for (more, what) in [
        (
            PAD.replace("mask = \"mask\"", "mask = \"masks\""),
            ":6:7: model masked: pad: the model has no input masks; it has tokens, mask",
        ),
        (PAD.replace("[4, 8]", "[8, 4]"), "each larger than the one before"),
        (PAD.replace("[1, 4]", "[4, 1]"), "allowed_batch_sizes are numbers above 0"),
        (format!("max_batch = 4\n{PAD}"), ":6:23: allowed_batch_sizes end with the largest batch"),
        (PAD.replace("buckets", "bucket"), "did you mean `buckets`"),
    ] {
        let weirfile = cluster.write("masked.toml", file("masked", &more));
        let said = cluster.fails(2, &["apply", "-f", &weirfile]);
        assert!(said.contains(what), "{said}");
    }
}
