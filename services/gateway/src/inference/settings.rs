//! TraceSetting and LogSettings: what can be read, and what can be changed while running.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sensorium_actors::error::{Error, Result};
use sensorium_proto::inference::log_settings_request::setting_value::ParameterChoice as Given;
use sensorium_proto::inference::log_settings_response::setting_value::ParameterChoice as Told;
use sensorium_proto::inference::{
    LogSettingsRequest, TraceSettingRequest, log_settings_response, trace_setting_response,
};

/// Changes the log filter of the process; the error says what is wrong with it.
pub type SetFilter = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Settings of the process.
#[derive(Clone)]
pub struct Settings {
    log: Arc<Mutex<Log>>,
    set_filter: SetFilter,
    trace_endpoint: Option<String>,
}

#[derive(Clone)]
struct Log {
    info: bool,
    warning: bool,
    error: bool,
    verbose: u32,
}

impl Log {
    /// The least severe level that is on, as a filter.
    fn filter(&self) -> &'static str {
        match self {
            Self { verbose: 2.., .. } => "trace",
            Self { verbose: 1, .. } => "debug",
            Self { info: true, .. } => "info",
            Self { warning: true, .. } => "warn",
            Self { error: true, .. } => "error",
            _ => "off",
        }
    }
}

impl Settings {
    /// Starts at level `info`.
    pub fn new(set_filter: SetFilter, trace_endpoint: Option<String>) -> Self {
        let log = Log { info: true, warning: true, error: true, verbose: 0 };
        Self { log: Arc::new(Mutex::new(log)), set_filter, trace_endpoint }
    }

    /// Traces are set up from the environment at the start; here they can be read only.
    pub fn trace(&self, request: TraceSettingRequest) -> Result<HashMap<String, trace_setting_response::SettingValue>> {
        if let Some(name) = request.settings.iter().find(|(_, value)| !value.value.is_empty()).map(|(name, _)| name) {
            return Err(Error::invalid(
                format!("settings.{name}"),
                "traces are configured by the OTEL_* environment variables, expected no setting",
            ));
        }
        let on = self.trace_endpoint.is_some();
        let values = [
            ("trace_mode", "opentelemetry".to_owned()),
            ("trace_level", if on { "TIMESTAMPS" } else { "OFF" }.to_owned()),
            ("trace_file", self.trace_endpoint.clone().unwrap_or_default()),
        ];
        let told = values
            .into_iter()
            .map(|(name, value)| (name.to_owned(), trace_setting_response::SettingValue { value: vec![value] }));
        Ok(told.collect())
    }

    /// Reads and changes the log level.
    pub fn log(&self, request: LogSettingsRequest) -> Result<HashMap<String, log_settings_response::SettingValue>> {
        let mut log = self.log.lock();
        // all of them or none
        let mut wanted = log.clone();
        let changed = request.settings.values().any(|value| value.parameter_choice.is_some());
        for (name, value) in request.settings {
            let Some(value) = value.parameter_choice else { continue };
            match (name.as_str(), value) {
                ("log_info", Given::BoolParam(on)) => wanted.info = on,
                ("log_warning", Given::BoolParam(on)) => wanted.warning = on,
                ("log_error", Given::BoolParam(on)) => wanted.error = on,
                ("log_verbose_level", Given::Uint32Param(level)) => wanted.verbose = level,
                ("log_format" | "log_file", _) => {
                    return Err(Error::invalid(format!("settings.{name}"), "cannot be changed while running"));
                }
                (_, value) => {
                    let expected = "log_info, log_warning, log_error (bool) or log_verbose_level (uint32)";
                    return Err(Error::invalid(format!("settings.{name}"), format!("{value:?}, expected {expected}")));
                }
            }
        }
        if changed {
            (self.set_filter)(wanted.filter()).map_err(|error| Error::invalid("settings", error))?;
            *log = wanted;
        }
        let values = [
            ("log_info", Told::BoolParam(log.info)),
            ("log_warning", Told::BoolParam(log.warning)),
            ("log_error", Told::BoolParam(log.error)),
            ("log_verbose_level", Told::Uint32Param(log.verbose)),
            ("log_format", Told::StringParam("default".to_owned())),
        ];
        let told = values.into_iter().map(|(name, choice)| {
            (name.to_owned(), log_settings_response::SettingValue { parameter_choice: Some(choice) })
        });
        Ok(told.collect())
    }
}
