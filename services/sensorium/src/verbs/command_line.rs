//! What was typed: the verb with its arguments, and how it prints. Wrong usage is told as the verb's other errors are.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgMatches, Command, Parser};

use super::failure::{EXIT_CODES, Failure, SERVERS_EXIT_CODES};
use super::output::Output;

/// Reads the command line of the process. The error has been told, and is its exit code; help and version are no
/// errors, and end the process as well.
///
/// # Errors
/// If there is nothing more to do.
pub fn read<C: Parser>() -> Result<(C, Output), ExitCode> {
    let matches = with_exit_codes(C::command()).try_get_matches();
    let parsed = matches.and_then(|matches| Ok((C::from_arg_matches(&matches)?, output(&matches))));
    parsed.map_err(|error| {
        if error.use_stderr() && wants_json(std::env::args_os().skip(1)) {
            let message = error.render().to_string();
            let message = message.strip_prefix("error: ").unwrap_or(&message).trim_end().to_owned();
            return Failure::Usage(message).tell(Output::Json);
        }
        // nobody can be told that nobody reads
        let _ = error.print();
        if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
    })
}

/// Says in each verb's help how it may end.
fn with_exit_codes(command: Command) -> Command {
    let codes = match command.get_name() {
        "serve" | "gateway" | "worker" => SERVERS_EXIT_CODES,
        _ => EXIT_CODES,
    };
    command.after_help(codes).mut_subcommands(with_exit_codes)
}

/// How the innermost verb prints.
fn output(matches: &ArgMatches) -> Output {
    match matches.subcommand() {
        Some((_, below)) => output(below),
        None => matches.try_get_one::<Output>("output").ok().flatten().copied().unwrap_or(Output::Text),
    }
}

/// Whether a command line that cannot be read asks for JSON.
fn wants_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let words: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    let joined = ["-ojson", "-o=json", "--output=json"];
    words.iter().any(|word| joined.contains(&word.as_str()))
        || words.windows(2).any(|pair| matches!([pair[0].as_str(), pair[1].as_str()], ["-o" | "--output", "json"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_asked_for_in_several_ways() {
        let wants = |line: &str| wants_json(line.split(' ').map(OsString::from));
        for line in ["jobs list -o json", "jobs -ojson", "x -o=json", "--output json y", "--output=json"] {
            assert!(wants(line), "{line}");
        }
        for line in ["jobs list", "jobs list -o text", "json", "-o", "infer --text json"] {
            assert!(!wants(line), "{line}");
        }
    }
}
