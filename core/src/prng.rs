//! The seeded generator, passed to whoever draws. Not for secrets.
//!
//! A seed means the same draws on every machine: logarithms and powers are our own ([`elementary`]), and everything else
//! is integer arithmetic or fixed by IEEE 754.

pub mod elementary;

use elementary::{ln, pow};

/// xoshiro256++ seeded by splitmix64 (Blackman and Vigna, 2019): small, fast, the same on every machine.
#[derive(Clone, Debug)]
pub struct Prng {
    state: [u64; 4],
}

impl Prng {
    /// A generator whose every draw follows from `seed`.
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        let state = std::array::from_fn(|_| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Prng { state }
    }

    /// A generator for one part of a larger run, independent of the others.
    pub fn fork(&mut self) -> Prng {
        Prng::new(self.next_u64())
    }

    /// A generator for the part numbered `part` of the run with `seed`: what other parts there are changes nothing in it.
    pub fn part(seed: u64, part: u64) -> Prng {
        Prng::new(Prng::new(seed).next_u64().wrapping_add(part))
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in (0, 1): never 0, so that its logarithm is finite.
    pub fn uniform(&mut self) -> f64 {
        ((self.next_u64() >> 11) as f64 + 0.5) * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `0..n`. Panics where `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "nothing to choose from");
        // Lemire's multiplication; the bias of at most n / 2^64 is immaterial here.
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -ln(self.uniform())
    }

    /// Standard normal (Marsaglia's polar method).
    pub fn normal(&mut self) -> f64 {
        loop {
            let (u, v) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let s = u * u + v * v;
            if s > 0.0 && s < 1.0 {
                return u * (-2.0 * ln(s) / s).sqrt();
            }
        }
    }

    /// Gamma with the given shape and scale 1 (Marsaglia and Tsang, 2000). Panics unless `shape` > 0.
    pub fn gamma(&mut self, shape: f64) -> f64 {
        assert!(shape > 0.0, "gamma needs a positive shape");
        if shape < 1.0 {
            return self.gamma(shape + 1.0) * pow(self.uniform(), 1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let root = 1.0 + c * x;
            // Its cube is normal, so that it has a logarithm.
            if root > 1e-100 {
                let v = root * root * root;
                if ln(self.uniform()) < 0.5 * x * x + d - d * v + d * ln(v) {
                    return d * v;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let n = 200_000;
        let xs: Vec<f64> = (0..n).map(|_| draw()).collect();
        let mean = xs.iter().sum::<f64>() / n as f64;
        (mean, xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64)
    }

    #[test]
    fn draws_have_the_moments_they_promise() {
        let mut prng = Prng::new(7);
        let near = |got: f64, want: f64| assert!((got - want).abs() < 0.02 * want.max(1.0), "{got} should be {want}");
        let (mean, var) = moments(|| prng.uniform());
        near(mean, 0.5);
        near(var, 1.0 / 12.0);
        let (mean, var) = moments(|| prng.exponential());
        near(mean, 1.0);
        near(var, 1.0);
        let (mean, var) = moments(|| prng.normal());
        near(mean, 0.0);
        near(var, 1.0);
        for shape in [0.0625, 0.5, 3.0] {
            let (mean, var) = moments(|| prng.gamma(shape));
            near(mean, shape);
            near(var, shape);
        }
    }

    #[test]
    fn a_seed_decides_every_draw() {
        let draw = |seed| {
            let mut p = Prng::new(seed);
            (0..8).map(|_| p.next_u64()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn parts_of_a_run_differ_from_each_other_and_from_those_of_another_seed() {
        let mut firsts: Vec<u64> = Vec::new();
        for seed in 0..100 {
            firsts.extend((0..100).map(|part| Prng::part(seed, part).next_u64()));
        }
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 10_000);
    }
}
