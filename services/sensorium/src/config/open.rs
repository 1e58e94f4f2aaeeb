//! Listeners that anybody can reach, and that ask nobody who it is.

use std::net::SocketAddr;

use super::Config;

/// Whether others than this machine can reach it.
fn is_beyond_loopback(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

impl Config {
    /// Warns where the door is open to more than this machine, and anybody may do everything there.
    pub fn warn_of_an_open_door(&self) {
        let asks = self.auth.keys.is_some() || self.auth.jwks.is_some() || self.tls.client_ca.is_some();
        if is_beyond_loopback(self.grpc) && !asks {
            let expected = "auth.keys, auth.jwks, or tls.client_ca";
            tracing::warn!(
                listening = %self.grpc,
                expected,
                "the door is open to more than this machine: whoever reaches it may ask, load, unload and drain"
            );
        }
    }

    /// Warns where a worker's listener for gateways is. Workers do what gateways say.
    #[cfg(feature = "worker")]
    pub fn warn_of_an_open_plane(&self) {
        if is_beyond_loopback(self.listen) && self.plane.certificate.is_none() {
            let expected = "plane.certificate, plane.key and plane.ca";
            tracing::warn!(
                listening = %self.listen,
                expected,
                "the plane is open to more than this machine: whoever reaches it is taken for a gateway"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_machine_alone() {
        for (address, beyond) in [
            ("127.0.0.1:1", false),
            ("127.8.8.8:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("0.0.0.0:1", true),
            ("[::]:1", true),
            ("10.0.0.1:1", true),
        ] {
            assert_eq!(is_beyond_loopback(address.parse().unwrap()), beyond, "{address}");
        }
    }
}
