//! Choosing the next token.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How to continue a text, and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus sampling (Holtzman et al., 2020): the smallest set of tokens with this much probability.
    pub top_p: f32,
    /// The most probable tokens only; 0: all.
    pub top_k: usize,
    /// The same seed gives the same choices.
    pub seed: u64,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
}

impl Sampling {
    /// Picks a token from FP32 `logits` `[vocabulary]` as the `step`-th of its sequence.
    ///
    /// The random number depends on seed and step alone, so a sequence that is taken up again elsewhere goes on as it
    /// would have.
    pub fn pick(&self, logits: &[f32], step: usize) -> u32 {
        if self.temperature <= 0.0 {
            return argmax(logits);
        }
        let mut ranked: Vec<u32> = (0..u32::try_from(logits.len()).unwrap_or(u32::MAX)).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if self.top_k > 0 && self.top_k < ranked.len() {
            ranked.select_nth_unstable_by(self.top_k - 1, by_logit);
            ranked.truncate(self.top_k);
        }
        // a nucleus rarely holds more than a few hundred tokens: sort those, and all only if they do not suffice
        let keep = ranked.len();
        let first = keep.min(512);
        if first < keep {
            ranked.select_nth_unstable_by(first - 1, by_logit);
        }
        ranked[..first].sort_unstable_by(by_logit);
        let highest = logits[ranked[0] as usize];
        let weight = |token: u32| ((logits[token as usize] - highest) / self.temperature).exp();
        let total: f32 = ranked.iter().map(|&token| weight(token)).sum();
        let mut wanted = self.top_p.clamp(0.0, 1.0) * total;
        let mut nucleus = first;
        let mut mass = 0.0;
        for (n, &token) in ranked[..first].iter().enumerate() {
            mass += weight(token);
            if mass >= wanted {
                nucleus = n + 1;
                break;
            }
        }
        if mass < wanted && first < keep {
            ranked.sort_unstable_by(by_logit);
            mass = 0.0;
            nucleus = keep;
            for (n, &token) in ranked.iter().enumerate() {
                mass += weight(token);
                if mass >= wanted {
                    nucleus = n + 1;
                    break;
                }
            }
        }
        wanted = mass * uniform(self.seed, step);
        for &token in &ranked[..nucleus] {
            wanted -= weight(token);
            if wanted <= 0.0 {
                return token;
            }
        }
        ranked[nucleus - 1]
    }
}

fn uniform(seed: u64, step: usize) -> f32 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_word_pos(step as u128 * 16);
    rng.random()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|(i, a), (j, b)| a.total_cmp(b).then(j.cmp(i)));
    best.map_or(0, |(token, _)| u32::try_from(token).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_p: f32, top_k: usize) -> Sampling {
        Sampling { max_tokens: 1, temperature, top_p, top_k, seed: 7, stop: Vec::new() }
    }

    #[test]
    fn greedy_takes_the_first_of_the_highest() {
        assert_eq!(sampling(0.0, 1.0, 0).pick(&[0.0, 3.0, 3.0, 1.0], 0), 1);
    }

    #[test]
    fn the_nucleus_and_top_k_keep_the_improbable_out() {
        let logits = [5.0, 4.0, -9.0, 3.9];
        for step in 0..200 {
            assert!([0, 1, 3].contains(&sampling(1.0, 0.99, 0).pick(&logits, step)));
            assert_eq!(sampling(1.0, 0.3, 0).pick(&logits, step), 0);
            assert!([0, 1].contains(&sampling(2.0, 1.0, 2).pick(&logits, step)));
        }
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        let sampling = sampling(1.0, 1.0, 0);
        let mut counts = [0; 3];
        for step in 0..10_000 {
            counts[sampling.pick(&logits, step) as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([5000, 3000, 2000]) {
            assert!(i32::abs(count - expected) < 250, "{counts:?}");
        }
    }

    #[test]
    fn a_flat_distribution_wider_than_the_shortcut_is_sampled_whole() {
        let logits = vec![0.0f32; 2000];
        let beyond = (0..200).filter(|&step| sampling(1.0, 1.0, 0).pick(&logits, step) >= 512).count();
        assert!(beyond > 100, "{beyond}");
    }

    #[test]
    fn top_k_keeps_exactly_k_also_beyond_the_shortcut() {
        let scattered: Vec<f32> = (0..5000u32).map(|n| (n.wrapping_mul(2_654_435_761) % 5000) as f32 / 1e4).collect();
        for (top_k, top_p) in [(700, 1.0), (1000, 1.0), (1000, 0.999), (4999, 1.0), (5000, 1.0), (9999, 1.0)] {
            let mut ranked: Vec<usize> = (0..scattered.len()).collect();
            ranked.sort_by(|a, b| scattered[*b].total_cmp(&scattered[*a]).then(a.cmp(b)));
            ranked.truncate(top_k);
            let picks = (0..400).map(|step| sampling(10.0, top_p, top_k).pick(&scattered, step) as usize);
            let picked: std::collections::BTreeSet<usize> = picks.collect();
            assert!(picked.iter().all(|token| ranked.contains(token)), "top_k = {top_k}");
            assert!(picked.iter().any(|token| !ranked[..512].contains(token)), "top_k = {top_k}: only the highest");
        }
    }

    #[test]
    fn seed_and_step_decide() {
        let logits: Vec<f32> = (0..100).map(|n| (n % 7) as f32).collect();
        let one: Vec<u32> = (0..20).map(|step| sampling(1.0, 1.0, 0).pick(&logits, step)).collect();
        let again: Vec<u32> = (0..20).map(|step| sampling(1.0, 1.0, 0).pick(&logits, step)).collect();
        assert_eq!(one, again);
        let other = Sampling { seed: 8, ..sampling(1.0, 1.0, 0) };
        assert_ne!(one, (0..20).map(|step| other.pick(&logits, step)).collect::<Vec<_>>());
    }
}
