//! What ends with a login, and the limits of a process.

use std::collections::BTreeMap;

use super::Finding;
use super::system::System;
use crate::failure::user_name;
use crate::units::size;

/// Users below this number are the system's: systemd leaves what is theirs.
const UID_FIRST: u32 = 1000;
/// Folders with the settings of systemd, those that count most first.
const SETTINGS: [&str; 4] = ["etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd"];
/// Descriptors that a process should be able to open.
const FILES_LEAST: u64 = 256;

pub(super) fn checks(system: &System) -> Vec<Finding> {
    vec![remove_ipc(system), limits(system)]
}

fn remove_ipc(system: &System) -> Finding {
    const CHECK: &str = "RemoveIPC";
    if !system.exists("run/systemd/system") {
        return Finding::fine(CHECK, "no systemd here that would remove heaps at logout");
    }
    let (is_on, origin) = remove_ipc_setting(system);
    if !is_on {
        return Finding::fine(CHECK, format!("systemd leaves heaps at logout: RemoveIPC=no ({origin})"));
    }
    let user = user_name(system.uid);
    if system.uid < UID_FIRST {
        let found = format!("systemd removes the heaps of ordinary users at logout ({origin}), but not those of {user}");
        return Finding::note(CHECK, found).remedy(TURN_OFF);
    }
    if system.exists(&format!("var/lib/systemd/linger/{user}")) {
        return Finding::fine(CHECK, format!("systemd removes heaps at logout ({origin}), but {user} lingers"));
    }
    let found = format!("systemd removes the heaps of {user} when the last session ends, attached or not ({origin})");
    Finding::warning(CHECK, found).remedy(format!("sudo loginctl enable-linger {user}\n{TURN_OFF}"))
}

const TURN_OFF: &str = "sudo mkdir -p /etc/systemd/logind.conf.d; \
                        printf '[Login]\\nRemoveIPC=no\\n' | sudo tee /etc/systemd/logind.conf.d/heaps.conf; \
                        sudo systemctl restart systemd-logind";

/// Whether logind removes segments at logout, and which file says so. Of files of one name the first folder's counts;
/// drop-ins come after the main file, in the order of their names.
fn remove_ipc_setting(system: &System) -> (bool, String) {
    let main = SETTINGS.iter().map(|folder| format!("{folder}/logind.conf")).find(|path| system.exists(path));
    let mut drop_ins: BTreeMap<String, String> = BTreeMap::new();
    for folder in SETTINGS {
        let folder = format!("{folder}/logind.conf.d");
        for name in system.list(&folder).into_iter().filter(|name| name.ends_with(".conf")) {
            let path = format!("{folder}/{name}");
            drop_ins.entry(name).or_insert(path);
        }
    }
    let mut setting = (true, "the default".to_owned());
    for path in main.into_iter().chain(drop_ins.into_values()) {
        for value in values(&system.read(&path).unwrap_or_default()) {
            setting = match value.to_ascii_lowercase().as_str() {
                "yes" | "true" | "on" | "1" | "y" | "t" => (true, format!("/{path}")),
                "no" | "false" | "off" | "0" | "n" | "f" => (false, format!("/{path}")),
                "" => (true, "the default".to_owned()),
                // Systemd skips what it does not understand.
                _ => continue,
            };
        }
    }
    setting
}

/// What a file assigns to RemoveIPC in its section Login.
fn values(text: &str) -> Vec<&str> {
    let mut in_section = false;
    let mut values = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            in_section = line == "[Login]";
        } else if let Some((key, value)) = line.split_once('=')
            && in_section
            && key.trim() == "RemoveIPC"
        {
            values.push(value.trim());
        }
    }
    values
}

fn limits(system: &System) -> Finding {
    const CHECK: &str = "limits";
    let Some(text) = system.read("proc/self/limits") else {
        return Finding::note(CHECK, "the limits of a process cannot be told: there is no /proc/self/limits");
    };
    // The soft limit, which is the one that counts; `unlimited` is none.
    let limit = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
    };
    let (address_space, file_size, files) = (limit("Max address space"), limit("Max file size"), limit("Max open files"));
    let mut found = Vec::new();
    let mut remedies = Vec::new();
    if let Some(limit) = address_space {
        found.push(format!("a process may map {} in all, heaps included", size(limit)));
        remedies.push("ulimit -v unlimited");
    }
    if let Some(limit) = file_size {
        found.push(format!("a process that creates a heap of more than {} is killed by SIGXFSZ", size(limit)));
        remedies.push("ulimit -f unlimited");
    }
    if let Some(limit) = files.filter(|limit| *limit < FILES_LEAST) {
        found.push(format!("a process may open {limit} files only, and each heap takes some"));
        remedies.push("ulimit -n 1024");
    }
    let names = [("address_space", address_space), ("file_size", file_size), ("open_files", files)];
    let numbers = names.into_iter().filter_map(|(name, limit)| Some((name, limit?)));
    match found.is_empty() {
        true => Finding::fine(CHECK, "none on address space or file size, and enough open files"),
        false => Finding::warning(CHECK, found.join("; ")).remedy(remedies.join("\n")),
    }
    .numbers(numbers)
}
