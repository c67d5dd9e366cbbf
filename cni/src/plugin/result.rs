//! The previous plugin's result, in the version that the configuration asks for.

use serde_json::Value;

/// Passes a result through. Between versions only this differs in meaning: up to 0.4.0 an address
/// tells its IP version, since 1.0.0 it must not.
pub(super) fn in_version(previous: &Value, version: &str) -> Value {
    let mut result = previous.clone();
    result["cniVersion"] = version.into();
    let told = version.starts_with("0.");
    for ip in result["ips"].as_array_mut().into_iter().flatten() {
        let v6 = ip["address"]
            .as_str()
            .is_some_and(|address| address.contains(':'));
        let Some(ip) = ip.as_object_mut() else {
            continue;
        };
        if told {
            ip.insert("version".into(), if v6 { "6" } else { "4" }.into());
        } else {
            ip.remove("version");
        }
    }
    if result["ips"].is_null()
        && let Some(result) = result.as_object_mut()
    {
        result.remove("ips");
    }
    result
}
