//! `sensorium key`: makes an API key, and the entry of the file of keys that lets it in.

use std::process::ExitCode;

use rand::Rng;
use rand::distr::Alphanumeric;
use sensorium_gateway::auth::{Key, Role, hash};
use serde::Serialize;

/// Characters of a key: more than 180 bits.
const LENGTH: usize = 32;

/// Arguments of `sensorium key`.
#[derive(clap::Args, Clone, Debug)]
pub struct KeyArgs {
    /// A name for people; it stands in logs.
    name: String,
    /// On whose behalf the key asks.
    #[arg(long, default_value = "")]
    tenant: String,
    /// It may load, unload, restart and drain, too.
    #[arg(long)]
    admin: bool,
    /// Models that it may ask, separated by commas. Default: all.
    #[arg(long, value_delimiter = ',')]
    models: Vec<String>,
}

#[derive(Serialize)]
struct File {
    keys: [Key; 1],
}

/// Prints the entry on stdout, for the file of keys, and the key itself on stderr: it is never shown again.
///
/// # Errors
/// If stdout is gone.
pub fn run(args: KeyArgs) -> anyhow::Result<ExitCode> {
    let secret: String = rand::rng().sample_iter(Alphanumeric).take(LENGTH).map(char::from).collect();
    let secret = format!("sk-{secret}");
    let roles = if args.admin { vec![Role::Infer, Role::Admin] } else { vec![Role::Infer] };
    let hash = hash(&secret).iter().map(|byte| format!("{byte:02x}")).collect();
    let key = Key { name: args.name, tenant: args.tenant, hash, roles, models: args.models };
    print!("{}", toml::to_string(&File { keys: [key] })?);
    eprintln!("{secret}");
    Ok(ExitCode::SUCCESS)
}
