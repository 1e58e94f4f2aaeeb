//! Models without weights: `identity`, which measures the cluster itself, and `chaos`, its twin that breaks on demand.

use std::time::{Duration, Instant};

use sensorium_actors::engine::{Batch, Engine, Error, Outputs, Pulse};
use sensorium_actors::tensor::{DataType, Tensor};

/// Returns its inputs. Bytes are shared, never copied.
pub(crate) struct Identity;

impl Engine for Identity {
    fn forward(&mut self, batch: Batch, pulse: &dyn Pulse) -> Result<Outputs, Error> {
        pulse.beat()?;
        Ok(Outputs { tensors: batch.tensors })
    }

    fn memory_bytes(&self) -> u64 {
        0
    }

    fn occupies_device(&self) -> bool {
        false
    }
}

/// Identity with faults, for drills and tests: the first value of each row of the first input, FP32, says what happens.
///
/// | value | what happens |
/// | --- | --- |
/// | NaN | panic |
/// | +∞ | hang: the thread blocks for ever, without a beat |
/// | −∞ | [`Error::Device`] |
/// | x > 1,000,000 | hang that ends: blocks for x − 1,000,000 milliseconds, without a beat |
/// | x < 0 | takes \|x\| milliseconds, with a beat every 10 ms |
/// | else | nothing |
pub(crate) struct Chaos {
    /// Whether its calls take turns on the cores, as those of a real model do.
    pub(crate) occupies_device: bool,
}

impl Engine for Chaos {
    fn forward(&mut self, batch: Batch, pulse: &dyn Pulse) -> Result<Outputs, Error> {
        let input = batch.tensors.first().ok_or_else(|| Error::Input("chaos takes one tensor, none given".into()))?;
        for order in orders(input)? {
            obey(order, pulse)?;
        }
        pulse.beat()?;
        Ok(Outputs { tensors: batch.tensors })
    }

    fn memory_bytes(&self) -> u64 {
        0
    }

    // a drill must harm nobody but its own model, unless it is to show that a hung call does not
    fn occupies_device(&self) -> bool {
        self.occupies_device
    }
}

/// The first value of each row.
fn orders(input: &Tensor) -> Result<Vec<f32>, Error> {
    if input.dtype() != DataType::Fp32 {
        return Err(Error::Input(format!("chaos takes FP32, not {}", input.dtype())));
    }
    let values = input.to_f32().map_err(|error| Error::Input(error.to_string()))?;
    let stride = (values.len() / input.rows().max(1)).max(1);
    Ok(values.into_iter().step_by(stride).collect())
}

/// Orders above it are hangs that end.
const HANGS_FOR: f32 = 1e6;

#[allow(clippy::panic)]
fn obey(order: f32, pulse: &dyn Pulse) -> Result<(), Error> {
    if order.is_nan() {
        panic!("chaos: told to panic");
    }
    if order == f32::INFINITY {
        loop {
            std::thread::park();
        }
    }
    if order == f32::NEG_INFINITY {
        return Err(Error::Device("chaos: told to fail".to_owned()));
    }
    if order > HANGS_FOR {
        // without a beat, as a call that hangs
        let end = Instant::now() + Duration::from_secs_f32((order - HANGS_FOR) / 1000.0);
        while Instant::now() < end {
            std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
        }
        return Ok(());
    }
    let end = Instant::now() + Duration::from_secs_f32(-order.min(0.0) / 1000.0);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        pulse.beat()?;
        std::thread::park_timeout(left.min(Duration::from_millis(10)));
    }
}
