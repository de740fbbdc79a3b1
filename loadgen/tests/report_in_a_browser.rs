//! The report as a browser shows it: in light, dark and on paper, wide and narrow, with nothing on the console. Without a browser of the
//! Chromium family (`apt-get install chromium`) there is nothing to test: that is said, and the test passes.
//!
//! `REPORT=FOLDER` keeps pages and pictures there.
#![recursion_limit = "256"]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use weir_loadgen::result::RunResult;
use weir_loadgen::{hdr, report};

const BROWSERS: [&str; 5] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];

fn browser() -> Option<&'static str> {
    BROWSERS.into_iter().find(|name| {
        let asked = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    })
}

/// A minute with a burst in it, three stages and a price, and words as long as they may come.
fn sample() -> RunResult {
    let mut all = hdr::histogram();
    let seconds: Vec<_> = (0..60u64)
        .map(|t| {
            let burst = (20..28).contains(&t);
            let offered = 300 + 40 * (t % 5) + if burst { 1500 } else { 0 };
            let mut histogram = hdr::histogram();
            for i in 0..offered {
                let ms = 2.0 + (i % 17) as f64 + if burst && i % 3 == 0 { 70.0 } else { 0.0 };
                hdr::record(&mut histogram, Duration::from_secs_f64(ms / 1e3));
            }
            all.add(&histogram).unwrap();
            let late = if burst { offered / 3 } else { 0 };
            let mid = offered / 4;
            serde_json::json!({"t": t, "offered": offered, "answered": offered, "within_deadline": offered - late, "degraded": late,
                "p50_us": 9_000, "p99_us": if burst { 85_000 } else { 18_000 }, "price": if burst { 0.4 } else { 0.02 },
                "stages": {"tiny": offered - mid - mid / 2, "mid": mid, "big": mid / 2}, "histogram": hdr::encode(&histogram)})
        })
        .collect();
    let part = |name: &str, weight: Option<f64>| {
        serde_json::json!({"name": name, "endpoint": "fashion", "data": "demo/images.npy", "rows": 500, "labels": "demo/labels.npy",
            "label_output": "probs", "deadline_us": 50_000, "arrivals": "mmpp:low=20,high=400,mean_low=2s,mean_high=300ms",
            "rate": 400.0, "weight": weight})
    };
    serde_json::from_value(serde_json::json!({
        "target": "weir://127.0.0.1:7300,127.0.0.1:7301,127.0.0.1:7302", "endpoint": "fashion",
        "arrivals": "gamma:cv=4 + mmpp:low=20,high=400,mean_low=2s,mean_high=300ms", "seed": 7, "rate": 400.0, "duration_s": 60.0,
        "duration_asked_s": 90.0, "interrupted": true, "goal": "attainment>=0.99,p99<=50ms", "deadline_us": 50_000,
        "offered": all.len(), "answered": all.len(), "rejected": 20, "expired": 3, "failed": 1, "unknown": 0, "degraded": 210,
        "within_deadline": all.len() - 4000, "attainment": 0.89, "goodput_per_s": 399.0, "accuracy": 0.921,
        "correct_within_deadline": 11_020, "latency_us": {"p50": 9_000, "p90": 72_000, "p99": 85_000, "p999": 88_000, "max": 88_000},
        "stages": {"tiny": 7011, "mid": 3977, "big": 1000}, "send_lag_us": {"p50": 60, "p99": 180, "max": 300},
        "invalid_because": "queries were sent late (p99 9000 us, over 5 % of the deadline): the generator measured itself", "valid": false,
        "connections": 8, "threads": 2,
        "errors": [["rejected: no connection to 127.0.0.1:7400: connection refused", 20]],
        "parts": [part("steady", Some(0.5)), part("bursty", None)],
        "endpoints": {"steady": {"deadline_us": 50_000, "offered": 10, "answered": 10, "rejected": 0, "expired": 0, "failed": 0,
            "unknown": 0, "within_deadline": 10, "attainment": 1.0, "latency_us": {"p50": 1, "p90": 1, "p99": 1, "p999": 1, "max": 1}}},
        "per_second": seconds, "histogram": hdr::encode(&all),
        "machine": {"os": "linux", "arch": "x86_64", "cpu": "A processor with a long name @ 2.10GHz", "cores": 2, "weir": "0.1.0"}
    }))
    .unwrap()
}

struct Browser {
    name: &'static str,
    folder: PathBuf,
    profile: tempfile::TempDir,
}

impl Browser {
    /// Opens a page of the folder, and returns what came on stdout and on the console.
    fn open(&self, page: &str, flags: &[&str]) -> (String, Vec<String>) {
        let url = format!("file://{}", self.folder.join(page).display());
        let output = Command::new(self.name)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
            .args(["--enable-logging=stderr", "--no-first-run", "--virtual-time-budget=2000"])
            .arg(format!("--user-data-dir={}", self.profile.path().display()))
            .args(flags)
            .arg(url)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        let console = told.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned).collect();
        assert!(output.status.success(), "{told}");
        (String::from_utf8_lossy(&output.stdout).into_owned(), console)
    }

    /// A picture's pixel at its upper left corner, and how many of its pixels are not like that.
    fn picture(&self, name: &str, scheme: &str, width: u32) -> ([u8; 3], f64) {
        let path = self.folder.join(name);
        let (shot, size) = (format!("--screenshot={}", path.display()), format!("--window-size={width},3000"));
        let (_, console) = self.open("report.html", &[&shot, &size, scheme]);
        assert!(console.is_empty(), "{console:?}");
        let mut reader =
            png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap())).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let step = info.line_size / info.width as usize;
        let paper = [pixels[0], pixels[1], pixels[2]];
        let inked = pixels.chunks_exact(step).filter(|pixel| pixel[..3] != paper).count();
        (paper, inked as f64 / (info.width * info.height) as f64)
    }
}

const LIGHT: &str = "--blink-settings=preferredColorScheme=1";
const DARK: &str = "--blink-settings=preferredColorScheme=0";

#[test]
fn the_report_is_whole_in_light_dark_and_print_and_the_console_is_silent() {
    let Some(name) = browser() else {
        eprintln!("skipped: no browser of the Chromium family is installed ({})", BROWSERS.join(", "));
        return;
    };
    let profile = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("REPORT").map(PathBuf::from);
    let folder = kept.unwrap_or_else(|| profile.path().to_owned());
    let browser = Browser { name, folder, profile };
    let page = report::html(&sample());
    let write = |name: &str, text: &str| std::fs::write(browser.folder.join(name), text).unwrap();
    write("report.html", &page);

    // What this test would see of an error.
    write("bad.html", "<script>console.error('planted')</script><img src='nowhere.png'>");
    let (_, console) = browser.open("bad.html", &["--dump-dom"]);
    assert!(console.iter().any(|line| line.contains("planted")), "the console is heard: {console:?}");

    let (dom, console) = browser.open("report.html", &["--dump-dom"]);
    assert!(console.is_empty(), "{console:?}");
    assert_eq!(dom.matches("<svg").count(), 6, "every plot is there");

    let (light, light_ink) = browser.picture("light.png", LIGHT, 900);
    let (dark, dark_ink) = browser.picture("dark.png", DARK, 900);
    assert!(light.iter().all(|part| *part > 200) && dark.iter().all(|part| *part < 60), "{light:?} {dark:?}");
    // Text and plots stand out from either paper.
    assert!(light_ink > 0.03 && dark_ink > 0.03, "{light_ink} {dark_ink}");

    // No line is wider than the page, on a screen or on a telephone.
    let probe = "<script>document.title=document.documentElement.scrollWidth+' of '+document.documentElement.clientWidth</script>";
    write("probe.html", &format!("{page}{probe}"));
    for width in ["900", "500"] {
        let (dom, _) = browser.open("probe.html", &["--dump-dom", &format!("--window-size={width},2000")]);
        let title = dom.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap();
        let (needed, there) = title.split_once(" of ").unwrap();
        assert_eq!(needed, there, "the page is wider than {width}");
    }
    write("print.html", &page);
    let pdf = browser.folder.join("print.pdf");
    let (_, console) = browser.open("print.html", &[&format!("--print-to-pdf={}", pdf.display()), DARK]);
    assert!(console.is_empty(), "{console:?}");
    is_pdf(&pdf);
}

/// Paper is short: the JSON stays on the screen.
fn is_pdf(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    assert!(bytes.starts_with(b"%PDF"));
    let pages = bytes.windows(11).filter(|part| part == b"/Type /Page" || part == b"/Type/Page ").count();
    assert!((1..=8).contains(&pages), "{pages} pages");
}
