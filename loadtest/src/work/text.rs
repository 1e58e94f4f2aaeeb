//! Texts of a known number of tokens.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Each is one token of BERT's uncased vocabulary.
const WORDS: &str = "the of and to in is was for on that with as by at from his her it he she they we you are be this \
have not or had an one all but were which when there can more if no out so said what up its about into than them only \
other time new some could these two may first then do any like my now over such our man me even most made after also \
did many before must through years back where much your way well down should because each just those people too how \
little state good very make world still own see men work long get here between both life being under three never know \
same last another while us off might great go come since against right came take used himself few house use place \
during high without again home around small however found thought went say part once general upon school every left \
got far course water war put asked fact though less public night think end power city hand find head room set \
business number body young group given face better door early open light line morning river table paper music voice \
street red green blue white black window garden train bridge winter summer";

/// A text of `tokens` tokens, `[CLS]` and `[SEP]` included. Another `seed` gives another text, so that no cache
/// answers in the model's place.
pub fn of(tokens: usize, seed: u64) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut random = StdRng::seed_from_u64(seed);
    let chosen = (0..tokens.saturating_sub(2)).filter_map(|_| words.choose(&mut random).copied());
    chosen.collect::<Vec<_>>().join(" ")
}

/// A number of tokens, uniform over 8 to 256.
pub fn mixed_length(seed: u64) -> usize {
    StdRng::seed_from_u64(seed ^ 0x5eed).random_range(8..=256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_that_of_the_words_and_two_marks() {
        assert_eq!(of(23, 1).split(' ').count(), 21);
        assert_eq!(of(2, 1), "");
        assert_eq!(of(23, 1), of(23, 1));
        assert_ne!(of(23, 1), of(23, 2));
    }

    #[test]
    fn mixed_lengths_cover_the_range() {
        let lengths: Vec<usize> = (0..4000).map(mixed_length).collect();
        let mean = lengths.iter().sum::<usize>() as f64 / 4000.0;
        assert!((mean - 132.0).abs() < 5.0, "{mean}");
        assert!(lengths.iter().all(|length| (8..=256).contains(length)));
    }
}
