//! Stretches of speech to windows of at most 30 s.

use super::{CHUNK, SAMPLE_RATE, Segment, Window};

/// Samples of a window at most: 30 s, what Whisper hears at once.
pub const MAX_WINDOW: usize = 30 * SAMPLE_RATE;

/// Packs segments of speech (in order and disjoint) into windows, in order and disjoint, that cover all of them.
///
/// A window begins and ends with speech and takes as many whole segments as fit. A segment that does not fit even
/// alone is cut in the middle of its least probable chunk of the second half, so that no piece is a splinter;
/// `probabilities` are those the segments came from. Without speech there are no windows.
pub fn windows(segments: &[Segment], probabilities: &[f32], total_samples: usize) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for segment in segments {
        let (mut start, end) = (segment.start, segment.end.min(total_samples));
        if start >= end {
            continue;
        }
        if let Some(last) = windows.last_mut()
            && end - last.start <= MAX_WINDOW
        {
            last.end = end;
            continue;
        }
        while end - start > MAX_WINDOW {
            let cut = quietest(probabilities, start + MAX_WINDOW / 2, start + MAX_WINDOW);
            windows.push(Window { start, end: cut });
            start = cut;
        }
        windows.push(Window { start, end });
    }
    windows
}

/// Where a window is best cut in two: in the middle of its least probable chunk between its first and its last quarter.
pub fn middle(window: Window, probabilities: &[f32]) -> usize {
    let quarter = (window.end - window.start) / 4;
    quietest(probabilities, window.start + quarter, window.end - quarter)
}

/// The middle of the least probable chunk that lies within `from..to`, the last of equals; `to` if none does.
fn quietest(probabilities: &[f32], from: usize, to: usize) -> usize {
    let chunks = from.div_ceil(CHUNK)..(to / CHUNK).min(probabilities.len());
    chunks
        .rev()
        .min_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]))
        .map_or(to, |chunk| chunk * CHUNK + CHUNK / 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Options, segments};
    use super::*;

    #[test]
    fn segments_share_a_window_while_they_fit() {
        let second = SAMPLE_RATE;
        let list = [(1, 10), (12, 29), (30, 33), (50, 61)]
            .map(|(start, end)| Segment { start: start * second, end: end * second });
        let got = windows(&list, &[], 100 * second);
        let expected = [(1, 29), (30, 33), (50, 61)].map(|(start, end)| (start * second, end * second));
        // 30..33 and 50..61 are more than 30 s together.
        assert_eq!(got.iter().map(|w| (w.start, w.end)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_long_stretch_is_cut_at_its_least_probable_chunk() {
        let mut probabilities = vec![0.9; 2000];
        probabilities[700] = 0.6;
        let got = windows(&[Segment { start: 0, end: 2000 * CHUNK }], &probabilities, 2000 * CHUNK);
        assert_eq!(got[0], Window { start: 0, end: 700 * CHUNK + CHUNK / 2 });
        assert_eq!(got[1].start, got[0].end);
    }

    #[test]
    fn a_window_is_cut_where_it_is_quietest() {
        let mut probabilities = vec![0.9; 400];
        (probabilities[5], probabilities[130], probabilities[399]) = (0.0, 0.2, 0.0);
        assert_eq!(middle(Window { start: 0, end: 400 * CHUNK }, &probabilities), 130 * CHUNK + CHUNK / 2);
    }

    proptest! {
        #[test]
        fn windows_cover_all_speech_without_overlap(
            runs in prop::collection::vec((0.0_f32..1.0, 1_usize..400), 0..60),
            tail in 0_usize..CHUNK,
        ) {
            let probabilities: Vec<f32> =
                runs.iter().flat_map(|&(value, chunks)| std::iter::repeat_n(value, chunks)).collect();
            let total = (probabilities.len() * CHUNK).saturating_sub(tail);
            let speech = segments(&probabilities, total, &Options::default());
            prop_assert!(speech.iter().all(|s| s.start < s.end && s.end <= total));
            prop_assert!(speech.windows(2).all(|pair| pair[0].end <= pair[1].start));

            let got = windows(&speech, &probabilities, total);
            prop_assert!(got.iter().all(|w| w.start < w.end && w.end <= total && w.end - w.start <= MAX_WINDOW));
            prop_assert!(got.windows(2).all(|pair| pair[0].end <= pair[1].start));
            for segment in &speech {
                let inside: usize = got
                    .iter()
                    .map(|w| w.end.min(segment.end).saturating_sub(w.start.max(segment.start)))
                    .sum();
                prop_assert_eq!(inside, segment.end - segment.start);
            }
        }

        #[test]
        fn the_limit_of_a_segment_holds(
            probabilities in prop::collection::vec(0.0_f32..1.0, 0..3000),
            seconds in 1.0_f64..30.0,
        ) {
            let total = probabilities.len() * CHUNK;
            let options = Options { max_speech_seconds: seconds, ..Options::default() };
            for segment in segments(&probabilities, total, &options) {
                prop_assert!((segment.end - segment.start) as f64 <= seconds * SAMPLE_RATE as f64 + CHUNK as f64);
            }
        }
    }
}
