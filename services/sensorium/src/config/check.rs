//! Keys that do not go together.

use std::path::PathBuf;

use super::Config;

impl Config {
    /// Whether the keys make sense together; names those that do not.
    pub(super) fn check(&self) -> Result<(), String> {
        let (tls, plane, register) = (&self.tls, &self.plane, &self.register);
        let set = |file: &Option<PathBuf>| file.is_some();
        whole(&[("tls.certificate", set(&tls.certificate)), ("tls.key", set(&tls.key))])?;
        if set(&tls.client_ca) && !set(&tls.certificate) {
            return Err("tls.client_ca: without tls.certificate and tls.key, expected both beside it".to_owned());
        }
        let files = [("plane.certificate", &plane.certificate), ("plane.key", &plane.key), ("plane.ca", &plane.ca)];
        whole(&files.map(|(key, file)| (key, set(file))))?;
        if !plane.server_name.is_empty() && !set(&plane.ca) {
            return Err(
                "plane.server_name: without plane.ca, expected plane.certificate, plane.key, plane.ca".to_owned()
            );
        }
        let (jobs, cache) = (&self.jobs, &self.cache);
        whole(&[("jobs.certificate", set(&jobs.certificate)), ("jobs.key", set(&jobs.key))])?;
        whole(&[("cache.certificate", set(&cache.certificate)), ("cache.key", set(&cache.key))])?;
        whole(&[("register.certificate", set(&register.certificate)), ("register.key", set(&register.key))])?;
        if set(&register.certificate) && !set(&register.ca) {
            return Err("register.certificate: without register.ca, expected who has signed etcd's own".to_owned());
        }
        let encrypted = |url: &&String| url.starts_with("https://");
        if let Some(url) = self.etcd.iter().find(encrypted).filter(|_| !set(&register.ca)) {
            return Err(format!("etcd: {url} without register.ca, expected who has signed etcd's certificate"));
        }
        if let Some(url) = self.etcd.iter().find(|url| url.starts_with("http://")).filter(|_| set(&register.ca)) {
            return Err(format!("register.ca: etcd is {url}, expected https"));
        }
        if !register.password.is_empty() && register.user.is_empty() {
            return Err("register.password: without register.user, expected both or none".to_owned());
        }
        self.auth.check()
    }
}

/// All of these are set, or none.
fn whole(keys: &[(&str, bool)]) -> Result<(), String> {
    let names = |wanted: bool| {
        keys.iter().filter(|(_, set)| *set == wanted).map(|(key, _)| *key).collect::<Vec<_>>().join(", ")
    };
    let (set, missing) = (names(true), names(false));
    if set.is_empty() || missing.is_empty() {
        return Ok(());
    }
    Err(format!("{set}: without {missing}, expected all or none"))
}
