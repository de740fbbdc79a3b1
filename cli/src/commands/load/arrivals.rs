//! `weir load arrivals`: what a trace is like.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use weir_core::workload::{self, GammaFit, Misfit, Mmpp, Statistics};
use weir_loadgen::trace;

use super::asked::usage;
use crate::connect::Common;
use crate::failure::Failure;
use crate::show::table;

#[derive(Args)]
pub struct Arrivals {
    /// t_seconds,model[,tokens_in,tokens_out] a line, as .csv or .csv.gz
    file: PathBuf,
}

impl Arrivals {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let trace = trace::read(&self.file).map_err(usage)?;
        let instants = trace.instants();
        let statistics = Statistics::of(&instants);
        let gamma = GammaFit::of(&instants).map(|fit| fit.arrivals().to_text()).map_err(|e| e.to_string());
        let gamma_rate = GammaFit::of(&instants).ok().map(|fit| fit.rate);
        let mmpp = Mmpp::fit(&instants).map_err(|e| e.to_string());
        let misfit = mmpp.as_ref().ok().and_then(|mmpp| mmpp.misfit(&statistics.windows));
        if common.json() {
            let window = |window: &workload::Window| {
                let theory = mmpp.as_ref().ok().map(|mmpp| mmpp.dispersion(window.width));
                json!({"width_s": window.width.as_secs_f64(), "windows": window.counted, "dispersion": window.dispersion,
                    "largest": window.largest, "mmpp_dispersion": theory})
            };
            let fit = |text: Result<String, String>| text.map_or_else(|why| json!({"error": why}), Value::from);
            let result = json!({
                "requests": statistics.count,
                "length_s": statistics.length.as_secs_f64(),
                "rate": statistics.rate,
                "gap_cv": statistics.gap_cv,
                "models": trace.models(),
                "windows": statistics.windows.iter().map(window).collect::<Vec<_>>(),
                "fits": {"gamma": fit(gamma), "gamma_rate": gamma_rate, "mmpp": fit(mmpp.clone().map(|mmpp| workload::Arrivals::Mmpp(mmpp).to_text())),
                    "mmpp_poor": misfit.map(|misfit| json!({"width_s": misfit.width.as_secs_f64(), "factor": misfit.factor}))},
            });
            println!("{result}");
            return Ok(());
        }
        let number = |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
        println!("requests  {} of {} models", statistics.count, trace.models().len());
        println!("length    {:.1} s", statistics.length.as_secs_f64());
        println!("rate      {} a second", number(statistics.rate, 3));
        println!("CV        {} (of the gaps; 1 for independent callers)", number(statistics.gap_cv, 2));
        println!();
        let row = |window: &workload::Window| {
            let theory = mmpp.as_ref().ok().map(|mmpp| mmpp.dispersion(window.width));
            vec![
                format!("{} s", window.width.as_secs_f64()),
                window.counted.to_string(),
                number(window.dispersion, 2),
                number(theory, 2),
                window.largest.to_string(),
            ]
        };
        let header = ["WINDOW", "COUNTED", "DISPERSION", "OF THE MMPP", "LARGEST"];
        println!("{}", table(&header, statistics.windows.iter().map(row).collect()));
        println!(
            "\nDispersion is the variance of counts over their mean: 1 for independent callers. Largest is the envelope.\n"
        );
        match gamma {
            Ok(text) => println!("gamma     {text} at {} a second", number(gamma_rate, 3)),
            Err(why) => println!("gamma     does not fit: {why}"),
        }
        match mmpp {
            Ok(mmpp) => println!("mmpp      {}", workload::Arrivals::Mmpp(mmpp).to_text()),
            Err(why) => println!("mmpp      does not fit: {why}"),
        }
        if let Some(misfit) = misfit {
            println!("          {}", poor(&misfit));
        }
        Ok(())
    }
}

/// What a fit that is far off is not good for.
fn poor(misfit: &Misfit) -> String {
    let (compared, remedy) = match misfit.too_smooth {
        true => ("smoother", "bursts that long would be missing"),
        false => ("burstier", "it has bursts that long which the trace has not"),
    };
    format!(
        "a poor fit: {:.1} times {compared} than the trace in windows of {} s, so {remedy}; replay the trace itself",
        misfit.factor,
        misfit.width.as_secs_f64()
    )
}
