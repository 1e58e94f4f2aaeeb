//! Word error rate.

/// Lower-case words without punctuation; abbreviations as they are spoken.
pub fn normalise(text: &str) -> Vec<String> {
    let text = text.to_lowercase().replace("mr.", "mister").replace("mrs.", "missus");
    let spoken: String = text.chars().map(|c| if c.is_alphanumeric() || c == '\'' { c } else { ' ' }).collect();
    spoken.split_whitespace().map(str::to_owned).collect()
}

/// Insertions, deletions and substitutions (Levenshtein, 1966) that turn the reference into what was heard, and the
/// words of the reference.
pub fn errors(reference: &str, heard: &str) -> (usize, usize) {
    let (reference, heard) = (normalise(reference), normalise(heard));
    let mut row: Vec<usize> = (0..=heard.len()).collect();
    for (n, word) in reference.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], n + 1);
        for (m, other) in heard.iter().enumerate() {
            let substituted = diagonal + usize::from(word != other);
            diagonal = row[m + 1];
            row[m + 1] = substituted.min(row[m] + 1).min(diagonal + 1);
        }
    }
    (row[heard.len()], reference.len())
}

/// Word error rate of several transcripts together.
#[allow(clippy::cast_precision_loss)]
pub fn error_rate<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> f64 {
    let (mut wrong, mut words) = (0, 0);
    for (reference, heard) in pairs {
        let (errors, length) = errors(reference, heard);
        wrong += errors;
        words += length;
    }
    wrong as f64 / words as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_compared_as_they_are_spoken() {
        assert_eq!(errors("he was not an ill disposed young man", "He was not an ill-disposed young man."), (0, 8));
        assert_eq!(errors("mister dashwood", "Mr. Dashwood"), (0, 2));
    }

    #[test]
    fn insertions_deletions_and_substitutions_count_one_each() {
        assert_eq!(errors("a b c", "a b c d").0, 1);
        assert_eq!(errors("a b c", "a c").0, 1);
        assert_eq!(errors("a b c", "a x c").0, 1);
        assert_eq!(errors("a b c", ""), (3, 3));
        assert!((error_rate([("a b", "a"), ("c d", "c d")]) - 0.25).abs() < 1e-9);
    }
}
