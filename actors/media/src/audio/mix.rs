//! Channels to one, so that none cancels another.
//!
//! The average of all channels makes silence of two in opposite phase (one microphone wired the other way round, or a
//! "karaoke" effect), and a whisper of the one voice among five silent channels. So the channels of each tenth of a
//! second are weighed by what is in them:
//!
//! - Beginning with the loudest, each is added with the sign that does not cancel what is already in the mix. A sign
//!   changes only where the correlation says so clearly ([`OPPOSITE`]), which is the hysteresis.
//! - The mix is as loud as its loudest channel: two equal channels are halved, silent ones cost nothing, and of
//!   different speakers left and right each is heard.
//! - Where the speakers' places are known, the centre, in which films and meetings speak, goes before front, side and
//!   rear, and bass effects are left out.
//!
//! Weights change within [`FADE`], which does not click. Only a block of the channels is held, never the clip: a first
//! pass over all of it would decode everything twice, or hold all channels, and would know no better what to do with a
//! clip whose first half is wired otherwise than its second.

use symphonia::core::audio::{Channels, GenericAudioBufferRef, Position};

use super::decode::RATES;
use super::{Clip, Error};

/// Seconds that are weighed as one.
pub(super) const BLOCK: f64 = 0.1;
/// Seconds in which weights change.
const FADE: f64 = 0.02;
/// Below this correlation with the mix so far, a channel is taken the other way round.
const OPPOSITE: f64 = -0.25;
/// Energy, relative to the loudest channel's, below which a channel's sign is not worth a thought: 40 dB.
const FAINT: f64 = 1e-4;
/// Layouts with fewer channels have no channel of bass effects, whatever the container guesses.
const SURROUND: usize = 6;

/// Mono samples in the making.
pub(super) struct Mix {
    samples: Vec<f32>,
    sample_rate: u32,
    channels: usize,
    codec: &'static str,
    max_seconds: f64,
    /// Frames that are still to be left out.
    skip: usize,
    /// Frames of the last packet.
    last: usize,
    /// Interleaved samples of one packet, kept for the next.
    packet: Vec<f32>,
    /// Interleaved samples that are not mixed yet, less than a block of them.
    block: Vec<f32>,
    layout: Layout,
}

impl Mix {
    /// A mix that leaves out the first `skip` frames.
    pub(super) fn new(max_seconds: f64, codec: &'static str, skip: usize) -> Self {
        let layout = Layout::of(&Channels::None);
        let (samples, packet, block) = Default::default();
        Self { samples, sample_rate: 0, channels: 0, codec, max_seconds, skip, last: 0, packet, block, layout }
    }

    /// Adds a packet's first `frames`.
    pub(super) fn add(&mut self, buffer: &GenericAudioBufferRef<'_>, frames: usize) -> Result<(), Error> {
        let rate = buffer.spec().rate();
        let channels = buffer.spec().channels();
        if buffer.frames() == 0 || channels.count() == 0 {
            return Ok(());
        }
        if !RATES.contains(&rate) || (self.sample_rate != 0 && rate != self.sample_rate) {
            let (min, max) = if self.sample_rate == 0 {
                (*RATES.start(), *RATES.end())
            } else {
                (self.sample_rate, self.sample_rate)
            };
            return Err(Error::SampleRate { codec: self.codec, rate, min, max });
        }
        self.sample_rate = rate;
        if self.layout.channels != *channels {
            self.flush();
            self.layout = Layout::of(channels);
        }
        let count = channels.count();
        self.channels = self.channels.max(count);
        let frames = frames.min(buffer.frames());
        let skipped = self.skip.min(frames);
        self.skip -= skipped;
        self.last = frames - skipped;
        let waiting = self.block.len() / count;
        if (self.samples.len() + waiting + frames - skipped) as f64 > self.max_seconds * f64::from(rate) {
            return Err(Error::TooLong { limit: self.max_seconds });
        }
        self.packet.resize(buffer.samples_interleaved(), 0.0);
        buffer.copy_to_slice_interleaved(&mut self.packet);
        let clean = |value: &f32| if value.is_nan() { 0.0 } else { value.clamp(-1.0, 1.0) };
        let packet = self.packet[skipped * count..frames * count].iter().map(clean);
        if count == 1 {
            self.samples.extend(packet);
            return Ok(());
        }
        self.block.extend(packet);
        let full = (f64::from(rate) * BLOCK) as usize * count;
        let mut at = 0;
        while self.block.len() - at >= full {
            self.layout.mix(&self.block[at..at + full], rate, &mut self.samples);
            at += full;
        }
        self.block.drain(..at);
        Ok(())
    }

    /// Leaves out as many frames of what follows.
    pub(super) fn skip(&mut self, frames: usize) {
        self.skip += frames;
    }

    fn flush(&mut self) {
        if !self.block.is_empty() {
            self.layout.mix(&self.block, self.sample_rate, &mut self.samples);
            self.block.clear();
        }
    }

    /// The clip, without the last `discard` nanoseconds, which belong to the last packet.
    pub(super) fn into_clip(mut self, discard: u64) -> Clip {
        self.flush();
        let frames = (discard as f64 * 1e-9 * f64::from(self.sample_rate)).round() as usize;
        let frames = frames.min(self.last);
        self.samples.truncate(self.samples.len().saturating_sub(frames));
        Clip {
            seconds: self.samples.len() as f64 / f64::from(self.sample_rate),
            samples: self.samples,
            sample_rate: self.sample_rate,
            channels: self.channels,
            codec: self.codec,
        }
    }
}

/// Channels, and how they were mixed last.
struct Layout {
    channels: Channels,
    /// What each is worth by its place; 0: left out.
    worth: Vec<f64>,
    signs: Vec<f64>,
    /// Those of the last block; none before the first that is not silent.
    weights: Option<Vec<f32>>,
}

impl Layout {
    fn of(channels: &Channels) -> Self {
        let count = channels.count();
        let mut worth = vec![1.0; count];
        let place = |position| match channels {
            Channels::Positioned(all) if all.contains(position) => {
                channels.get_canonical_index_for_positioned_channel(position)
            }
            _ => None,
        };
        if let Some(centre) = place(Position::FRONT_CENTER).filter(|_| count > 2) {
            worth.fill(0.5);
            worth[centre] = 1.0;
            for side in [Position::FRONT_LEFT, Position::FRONT_RIGHT].into_iter().filter_map(place) {
                worth[side] = std::f64::consts::FRAC_1_SQRT_2;
            }
        }
        for bass in [Position::LFE1, Position::LFE2].into_iter().filter_map(place).filter(|_| count >= SURROUND) {
            worth[bass] = 0.0;
        }
        Self { channels: channels.clone(), worth, signs: vec![1.0; count], weights: None }
    }

    /// Mixes interleaved frames and appends them to `into`.
    fn mix(&mut self, block: &[f32], rate: u32, into: &mut Vec<f32>) {
        let count = self.worth.len();
        let frames = block.len() / count;
        let fade = (f64::from(rate) * FADE) as usize;
        let last = self.weights.take();
        let weights = match &last {
            // too little to judge by
            Some(last) if frames < fade => last.clone(),
            _ => self.weigh(block).or_else(|| last.clone()).unwrap_or_else(|| vec![0.0; count]),
        };
        let from = last.as_ref().unwrap_or(&weights);
        for (index, frame) in block.chunks_exact(count).enumerate() {
            let share = if index < fade { index as f32 / fade as f32 } else { 1.0 };
            let weighted = frame.iter().zip(from.iter().zip(&weights));
            let sum: f32 = weighted.map(|(value, (from, to))| value * (from + share * (to - from))).sum();
            into.push(sum.clamp(-1.0, 1.0));
        }
        // silence has no weights of its own
        self.weights = Some(weights).filter(|weights| last.is_some() || weights.iter().any(|weight| *weight != 0.0));
    }

    /// A weight per channel; nothing of silence.
    fn weigh(&mut self, block: &[f32]) -> Option<Vec<f32>> {
        let count = self.worth.len();
        // correlation of each channel with each
        let mut products = vec![0.0_f64; count * count];
        for frame in block.chunks_exact(count) {
            for (a, row) in products.chunks_exact_mut(count).enumerate() {
                for (b, sum) in row.iter_mut().enumerate().take(a + 1) {
                    *sum += f64::from(frame[a] * frame[b]);
                }
            }
        }
        let product = |a: usize, b: usize| products[a.max(b) * count + a.min(b)];
        let mut order: Vec<usize> = (0..count).filter(|channel| self.worth[*channel] > 0.0).collect();
        order.sort_by(|a, b| product(*b, *b).total_cmp(&product(*a, *a)));
        let loudest = *order.first()?;
        let most = product(loudest, loudest);
        if most == 0.0 {
            return None;
        }
        let mut mixed = vec![0.0; count];
        let mut energy = 0.0;
        for channel in order {
            let own = product(channel, channel);
            let with_mix: f64 = (0..count).map(|other| mixed[other] * product(channel, other)).sum();
            let correlation = self.signs[channel] * with_mix / (own * energy).sqrt();
            if own > FAINT * most && correlation < OPPOSITE {
                self.signs[channel] = -self.signs[channel];
            }
            let weight = self.signs[channel] * self.worth[channel];
            mixed[channel] = weight;
            energy += 2.0 * weight * with_mix + weight * weight * own;
        }
        let peak = block.chunks_exact(count).map(|frame| {
            let sum: f64 = frame.iter().zip(&mixed).map(|(value, weight)| f64::from(*value) * weight).sum();
            sum.abs()
        });
        let gain = (most / energy).sqrt().min(1.0 / peak.fold(0.0, f64::max));
        Some(mixed.iter().map(|weight| (weight * gain) as f32).collect())
    }
}
