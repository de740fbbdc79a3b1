//! Logarithm, exponential and cosine that give the same bits on every machine.
//!
//! The intuition: IEEE 754 fixes the result of `+`, `-`, `*`, `/` and `sqrt` to the last bit, but not of `ln`, `exp` or
//! `cos`, which Rust takes from the platform. Here they are made of the former only: the argument is reduced to a small
//! interval and a power series is summed until its next term is below half a unit in the last place. Whatever is drawn
//! from a seed goes through these, so that a seed means the same instants everywhere.
//!
//! The contract: within 1e-14 of the true value, relatively. Abramowitz and Stegun, 4.1.27, 4.2.1, 4.3.65 and 4.3.66.

use std::f64::consts::{LOG2_E, SQRT_2, TAU};

/// ln 2 as a sum: the first part has 21 trailing zero bits, so that its multiples by an exponent are exact.
const LN_2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN_2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);

const SIGNIFICAND: u64 = (1 << 52) - 1;
const EXPONENT_OF_ONE: i64 = 1023;

/// Natural logarithm. Panics unless `x` is positive, finite and not subnormal.
pub fn ln(x: f64) -> f64 {
    assert!(x.is_normal() && x > 0.0, "no logarithm of {x}");
    let mut exponent = (x.to_bits() >> 52) as i64 - EXPONENT_OF_ONE;
    let mut significand = f64::from_bits((x.to_bits() & SIGNIFICAND) | (EXPONENT_OF_ONE as u64) << 52);
    if significand > SQRT_2 {
        significand *= 0.5;
        exponent += 1;
    }
    // ln m = 2 (s + s³/3 + s⁵/5 + …) with s = (m − 1) / (m + 1); |s| ≤ 0.172, so that s²³ / 23 < 1e-18.
    let s = (significand - 1.0) / (significand + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for reciprocal in ODD_RECIPROCALS.iter().rev() {
        sum = sum * square + reciprocal;
    }
    let exponent = exponent as f64;
    exponent * LN_2_HIGH + (2.0 * s * sum + exponent * LN_2_LOW)
}

/// e to the power of `x`: 0 below -708 and infinite above 709, so that no result is subnormal. NaN stays NaN.
pub fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x < -708.0 {
        return 0.0;
    }
    if x > 709.0 {
        return f64::INFINITY;
    }
    // x = k ln 2 + r, |r| ≤ 0.347, so that r¹⁵ / 15! < 1e-18.
    let k = (x * LOG2_E).round();
    let r = (x - k * LN_2_HIGH) - k * LN_2_LOW;
    let mut sum = 1.0;
    for reciprocal in RECIPROCALS[..14].iter().rev() {
        sum = sum * r * reciprocal + 1.0;
    }
    sum * f64::from_bits(((k as i64 + EXPONENT_OF_ONE) as u64) << 52)
}

/// `x` to the power of `y`, for a positive `x`. The relative error grows with |y ln x|.
pub fn pow(x: f64, y: f64) -> f64 {
    exp(y * ln(x))
}

/// Cosine of an angle in turns: of 2π `turns`. Panics unless `turns` is finite.
pub fn cos_turns(turns: f64) -> f64 {
    assert!(turns.is_finite(), "no cosine of {turns}");
    let turns = (turns - turns.floor()).min(turns.ceil() - turns);
    // By symmetry every angle is one in the first eighth of a turn; the differences are exact.
    match turns {
        t if t <= 0.125 => cos_series(TAU * t),
        t if t <= 0.375 => sin_series(TAU * (0.25 - t)),
        t => -cos_series(TAU * (0.5 - t)),
    }
}

/// 1 - x²/2! + x⁴/4! - …; |x| ≤ π/4, so that x²⁰ / 20! < 1e-20.
fn cos_series(x: f64) -> f64 {
    let square = x * x;
    (1..=9).rev().fold(1.0, |sum, k| 1.0 - sum * square * (RECIPROCALS[2 * k - 2] * RECIPROCALS[2 * k - 1]))
}

/// x (1 - x²/3! + x⁴/5! - …); |x| ≤ π/4, so that x²⁰ / 21! < 1e-21.
fn sin_series(x: f64) -> f64 {
    let square = x * x;
    x * (1..=9).rev().fold(1.0, |sum, k| 1.0 - sum * square * (RECIPROCALS[2 * k - 1] * RECIPROCALS[2 * k]))
}

/// 1/1, 1/2, 1/3, …
const RECIPROCALS: [f64; 19] = {
    let mut table = [0.0; 19];
    let mut i = 0;
    while i < table.len() {
        table[i] = 1.0 / (i + 1) as f64;
        i += 1;
    }
    table
};

/// 1/1, 1/3, 1/5, …
const ODD_RECIPROCALS: [f64; 11] = {
    let mut table = [0.0; 11];
    let mut i = 0;
    while i < table.len() {
        table[i] = 1.0 / (2 * i + 1) as f64;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    /// The platform's own functions are within a unit or two of the last place on the machines that run this test.
    #[track_caller]
    fn same(got: f64, want: f64, x: f64) {
        assert!((got - want).abs() <= 1e-14 * want.abs(), "{got:e} should be {want:e} at {x:e}");
    }

    #[test]
    fn logarithm_is_right_over_the_whole_range() {
        let mut prng = Prng::new(1);
        for _ in 0..100_000 {
            let x = f64::from_bits(prng.next_u64() >> 1);
            if x.is_normal() {
                same(ln(x), x.ln(), x);
            }
            let u = prng.uniform();
            same(ln(u), u.ln(), u);
            same(ln(1.0 + u * 1e-6), (u * 1e-6 + 1.0).ln(), u);
        }
        assert_eq!(ln(1.0), 0.0);
        for x in [f64::MIN_POSITIVE, f64::MAX, SQRT_2, SQRT_2 / 2.0, 1.0 - f64::EPSILON, 1.0 + f64::EPSILON] {
            same(ln(x), x.ln(), x);
        }
    }

    #[test]
    fn exponential_is_right_and_never_subnormal() {
        let mut prng = Prng::new(2);
        for _ in 0..100_000 {
            let u = prng.uniform();
            for x in [1417.0 * u - 708.0, u, -u, u * 1e-9] {
                same(exp(x), x.exp(), x);
            }
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-708.1), 0.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(709.1), f64::INFINITY);
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn powers_are_right_while_their_exponent_is_moderate() {
        let mut prng = Prng::new(3);
        for _ in 0..100_000 {
            let (x, y) = (prng.uniform(), 8.0 * prng.uniform() - 4.0);
            let room = 1e-14 + 4.0 * f64::EPSILON * (y * x.ln()).abs();
            assert!((pow(x, y) - x.powf(y)).abs() <= room * x.powf(y), "{x} to the power of {y}");
        }
    }

    #[test]
    fn cosine_is_right_at_every_angle() {
        let mut prng = Prng::new(4);
        for _ in 0..100_000 {
            // A short binary fraction, so that 2π t is what the platform's cosine sees but for its rounding.
            let t = 4.0 * prng.uniform() - 2.0;
            let want = (TAU * t).cos();
            assert!((cos_turns(t) - want).abs() < 3e-15, "{} should be {want} at {t} turns", cos_turns(t));
        }
        let quarters: Vec<f64> = (-4..=4).map(|i| cos_turns(f64::from(i) / 4.0)).collect();
        assert_eq!(quarters, [1.0, 0.0, -1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0]);
    }

    /// The bits themselves: a platform that gave others would fail here.
    #[test]
    fn bits_are_the_same_everywhere() {
        let bits =
            [ln(0.1), ln(3.0), exp(-1.5), exp(100.3), cos_turns(0.1), cos_turns(0.3), pow(0.7, 12.3)].map(f64::to_bits);
        let on_x86_64 = [
            0xc002_6bb1_bbb5_5515,
            0x3ff1_93ea_7aad_030b,
            0x3fcc_8f87_724b_5c1d,
            0x48fa_08a5_754a_e034,
            0x3fe9_e377_9b97_f4a8,
            0xbfd3_c6ef_372f_e94e,
            0x3f89_786c_7038_2815,
        ];
        assert_eq!(bits.map(|bits| format!("{bits:#x}")), on_x86_64.map(|bits: u64| format!("{bits:#x}")));
    }
}
