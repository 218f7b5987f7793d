//! The page of a new installation: it works, and who answered. For people a page, for curl a line.

use super::request::Request;
use super::server::{self, Response};
use crate::wire::{GENERATION_VARIABLE, POOL_VARIABLE, SLOT_VARIABLE};
use crate::worker::Connection;

/// Answers one connection to its end.
pub fn serve(connection: Connection) {
    let who = Who::from_env();
    server::serve(connection, |request| answer(request, &who));
}

struct Who {
    pool: String,
    slot: String,
    generation: String,
    pid: u32,
}

impl Who {
    fn from_env() -> Who {
        let read = |name| std::env::var(name).unwrap_or_else(|_| "?".to_owned());
        Who {
            pool: read(POOL_VARIABLE),
            slot: read(SLOT_VARIABLE),
            generation: read(GENERATION_VARIABLE),
            pid: std::process::id(),
        }
    }
}

fn answer(request: &Request, who: &Who) -> Response {
    match request.target.split('?').next().unwrap_or_default() {
        "/" if request.accept.contains("text/html") => {
            Response { content_type: "text/html;charset=utf-8", ..Response::text(page(who)) }
        }
        "/" => Response::text(line(who)),
        _ => Response::refusal(404, "Not Found"),
    }
}

fn line(who: &Who) -> String {
    let Who { pool, slot, generation, pid } = who;
    format!("It works. pool {pool}, slot {slot}, generation {generation}, process {pid}\n")
}

fn page(who: &Who) -> String {
    let Who { pool, slot, generation, pid } = who;
    let pool = pool.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html>\n\
         <html lang=\"en\">\n\
         <meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>rcluster works</title>\n\
         <style>\n\
         body {{ font: 1.1rem/1.6 system-ui, sans-serif; max-width: 34rem; margin: 15vh auto; padding: 0 1rem; \
         color: #222; background: #fff }}\n\
         td {{ padding-right: 2rem }}\n\
         @media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #181818 }} }}\n\
         </style>\n\
         <h1>It works.</h1>\n\
         <p>rcluster is running, and this is who answered you:</p>\n\
         <table>\n\
         <tr><td>pool<td>{pool}\n\
         <tr><td>slot<td>{slot}\n\
         <tr><td>generation<td>{generation}\n\
         <tr><td>process<td>{pid}\n\
         </table>\n\
         <p>Load it again while <code>systemctl reload rcluster</code> runs: the generation rises, \
         and no request fails.</p>\n\
         </html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(target: &str, accept: &str) -> Response {
        let request = Request {
            method: "GET".into(),
            target: target.into(),
            body: Vec::new(),
            keep_alive: true,
            accept: accept.into(),
        };
        let generation = "3".into();
        answer(&request, &Who { pool: "<web>".into(), slot: "2".into(), generation, pid: 41 })
    }

    fn text(response: &Response) -> String {
        match &response.body {
            super::server::Body::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            super::server::Body::Filling(_) => String::new(),
        }
    }

    #[test]
    fn people_get_a_page_and_programs_a_line() {
        let page = ask("/", "text/html,application/xhtml+xml");
        assert!(page.content_type.starts_with("text/html"));
        let page = text(&page);
        assert!(page.contains("&lt;web>") && page.contains("<td>41"), "{page}");
        let line = text(&ask("/?x", "*/*"));
        assert_eq!(line, "It works. pool <web>, slot 2, generation 3, process 41\n");
        assert_eq!(ask("/favicon.ico", "").status, 404);
    }
}
