//! Two processes that run the same seed see the same, to the last instant.

use std::process::Command;

use crate::faults::holds;

const PRINT: &str = "WEIR_PRINT_SEED";

#[test]
fn a_seed_repeats() {
    if let Ok(seed) = std::env::var(PRINT) {
        println!("fingerprint {:016x}", holds(seed.parse().expect("a number")).fingerprint());
        return;
    }
    let mut prints = Vec::new();
    for seed in [3, 4, 5] {
        let [first, second] = [(); 2].map(|()| {
            let mut run = Command::new(std::env::current_exe().expect("a test has a path"));
            run.args(["a_seed_repeats", "--nocapture", "--test-threads=1"]).env(PRINT, seed.to_string());
            let output = String::from_utf8(run.output().expect("it runs").stdout).expect("text");
            let line =
                output.lines().find_map(|line| line.split_once("fingerprint ")).map(|(_, print)| print.to_owned());
            line.unwrap_or_else(|| panic!("seed {seed} printed {output}"))
        });
        assert_eq!(first, second, "seed {seed} went two ways");
        prints.push(first);
    }
    assert!(prints[0] != prints[1] && prints[1] != prints[2], "seeds differ");
}
