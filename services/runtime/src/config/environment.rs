//! Which environment variables are keys of the configuration, and which only look like it.

use std::ffi::OsString;

/// How variables of ours begin.
const PREFIX: &str = "SENSORIUM_";

/// Variables that belong to a tool beside the server, not to its configuration.
const NOT_OURS: [&str; 10] = [
    "SENSORIUM_BINARY",
    "SENSORIUM_CA",
    "SENSORIUM_CACHE",
    "SENSORIUM_CERTIFICATE",
    "SENSORIUM_CLIENT_KEY",
    "SENSORIUM_CONFIG",
    "SENSORIUM_KEY",
    "SENSORIUM_SAMPLES",
    "SENSORIUM_SERVER",
    "SENSORIUM_TEST_PYTHON",
];

/// Transports that a Service of Kubernetes may have.
const TRANSPORTS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// A variable that sets a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Variable {
    /// As the environment has it.
    pub name: String,
    /// The key, dotted.
    pub key: String,
    /// Its value; an error is one that is not UTF-8, as far as it can be shown.
    pub value: Result<String, String>,
}

/// The variables that set keys, by name. Names that are not UTF-8 are nobody's.
pub(super) fn variables(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<Variable> {
    let ours = environment.into_iter().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        let key = name.strip_prefix(PREFIX)?;
        let value = value.into_string().map_err(|value| value.to_string_lossy().into_owned());
        let text = value.as_ref().map_or_else(String::as_str, String::as_str);
        if key.is_empty() || NOT_OURS.contains(&name.as_str()) || is_of_a_service(key, text) {
            return None;
        }
        Some(Variable { key: key.to_lowercase().replace("__", "."), name, value })
    });
    let mut ours: Vec<Variable> = ours.collect();
    ours.sort_by(|a, b| a.name.cmp(&b.name));
    ours
}

/// Whether Kubernetes makes such a variable in each container for a Service whose name begins with `sensorium`: where it is
/// reached, in its own form and in that of Docker's links.
///
/// <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
fn is_of_a_service(name: &str, value: &str) -> bool {
    // of a Service that is called `sensorium` nothing is left of the name
    let whole = format!("_{name}");
    let port = |text: &str| text.parse::<u16>().is_ok();
    if whole.ends_with("_SERVICE_HOST") || whole.ends_with("_SERVICE_PORT") || whole.contains("_SERVICE_PORT_") {
        return true;
    }
    let is_url = || TRANSPORTS.iter().any(|transport| value.starts_with(&format!("{}://", transport.to_lowercase())));
    if whole.ends_with("_PORT") && is_url() {
        return true;
    }
    // <NAME>_PORT_<number>_<TRANSPORT>, alone or with one of three endings
    let stem = ["_PROTO", "_PORT", "_ADDR"].iter().find_map(|ending| whole.strip_suffix(ending)).unwrap_or(&whole);
    let Some((rest, transport)) = stem.rsplit_once('_') else { return false };
    let Some((rest, number)) = rest.rsplit_once('_') else { return false };
    TRANSPORTS.contains(&transport) && port(number) && rest.ends_with("_PORT")
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn what_kubernetes_makes_for_services_is_not_ours() {
        for (name, value) in [
            ("SENSORIUM_SERVICE_HOST", "10.0.0.1"),
            ("SENSORIUM_SERVICE_PORT", "8001"),
            ("SENSORIUM_SERVICE_PORT_GRPC", "8001"),
            ("SENSORIUM_PORT", "tcp://10.0.0.1:8001"),
            ("SENSORIUM_PORT_8001_TCP", "tcp://10.0.0.1:8001"),
            ("SENSORIUM_PORT_8001_TCP_PROTO", "tcp"),
            ("SENSORIUM_PORT_8001_TCP_PORT", "8001"),
            ("SENSORIUM_PORT_8001_TCP_ADDR", "10.0.0.1"),
            ("SENSORIUM_GATEWAY_SERVICE_HOST", "10.0.0.1"),
            ("SENSORIUM_GATEWAY_SERVICE_PORT_HTTP_METRICS", "8002"),
            ("SENSORIUM_GATEWAY_PORT", "tcp://10.0.0.1:8001"),
            ("SENSORIUM_GATEWAY_PORT_8001_TCP", "tcp://10.0.0.1:8001"),
            ("SENSORIUM_WORKER_2_PORT_53_UDP_ADDR", "10.0.0.1"),
            ("SENSORIUM_WORKER_PORT_36412_SCTP", "sctp://10.0.0.1:36412"),
        ] {
            assert_eq!(variables([(name.into(), value.into())]), [], "{name}");
        }
    }

    #[test]
    fn keys_are_and_so_is_what_only_resembles_a_service() {
        for (name, key) in [
            ("SENSORIUM_NAME", "name"),
            ("SENSORIUM_LIMITS__MAX_INFLIGHT", "limits.max_inflight"),
            ("SENSORIUM_PORT", "port"),
            ("SENSORIUM_PORT_NUMBER_TCP", "port_number_tcp"),
            ("SENSORIUM_8001_TCP", "8001_tcp"),
        ] {
            let found = variables([(name.into(), "8001".into())]);
            assert!(found.len() == 1 && found[0].key == key && found[0].name == name, "{found:?}");
        }
        assert_eq!(variables([("SENSORIUM_".into(), "x".into()), ("HOME".into(), "/".into())]), []);
        assert_eq!(variables([("SENSORIUM_SERVER".into(), "http://x".into())]), []);
    }

    #[test]
    fn what_is_not_utf_8_is_no_panic() {
        let broken = || OsString::from_vec(vec![b'a', 0xff]);
        let found =
            variables([("SENSORIUM_NAME".into(), broken()), (broken(), "x".into()), ("OTHER".into(), broken())]);
        assert!(found.len() == 1 && found[0].value == Err("a\u{fffd}".to_owned()), "{found:?}");
    }
}
