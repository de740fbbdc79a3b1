use super::*;

const RATE: f64 = 1000.0;

fn gaps(arrivals: Arrivals, seed: u64) -> Vec<f64> {
    let instants: Vec<f64> =
        arrivals.instants(RATE, Prng::new(seed)).take(200_001).map(|t| t.as_nanos() as f64 / 1e9).collect();
    instants.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

fn near(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance * want, "{got} should be {want}");
}

#[test]
fn gaps_have_the_mean_and_variation_asked_for() {
    for (arrivals, cv) in
        [(Arrivals::Poisson, 1.0), (Arrivals::Gamma { cv: 4.0 }, 4.0), (Arrivals::Gamma { cv: 0.5 }, 0.5)]
    {
        let gaps = gaps(arrivals, 3);
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let var = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        near(mean, 1.0 / RATE, 0.04);
        near(var.sqrt() / mean, cv, 0.04);
    }
    let constant = gaps(Arrivals::Constant, 3);
    assert!(constant.iter().all(|gap| (gap - 1.0 / RATE).abs() < 2e-9));
}

/// For a renewal process the index of dispersion of counts in long windows tends to CV² (Cox, Renewal Theory, 1962).
#[test]
fn counts_in_long_windows_are_as_dispersed_as_theory_says() {
    for (arrivals, cv, tolerance) in [(Arrivals::Poisson, 1.0, 0.15), (Arrivals::Gamma { cv: 2.0 }, 2.0, 0.25)] {
        let window = 0.5;
        let mut counts = vec![0.0f64; 400];
        for instant in arrivals.instants(RATE, Prng::new(5)) {
            let slot = (instant.as_nanos() as f64 / 1e9 / window) as usize;
            match counts.get_mut(slot) {
                Some(count) => *count += 1.0,
                None => break,
            }
        }
        let mean = counts.iter().sum::<f64>() / counts.len() as f64;
        let var = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64;
        near(var / mean, cv * cv, tolerance);
    }
}

#[test]
fn a_seed_decides_every_instant() {
    assert_eq!(gaps(Arrivals::Poisson, 1), gaps(Arrivals::Poisson, 1));
    assert_ne!(gaps(Arrivals::Poisson, 1), gaps(Arrivals::Poisson, 2));
}

#[test]
fn processes_are_named_or_refused_with_what_there_is() {
    for text in ["constant", "poisson", "gamma:cv=4", "gamma:cv=0.5"] {
        assert_eq!(Arrivals::parse(text).unwrap().to_text(), text);
    }
    for bad in ["", "uniform", "gamma", "gamma:cv=0", "gamma:cv=-1", "gamma:cv=nan", "gamma:cv=1e9", "mmpp:low=1"] {
        assert!(Arrivals::parse(bad).unwrap_err().to_string().contains("poisson"), "{bad}");
    }
}
