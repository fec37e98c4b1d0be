//! Writes SVG elements. This is the only module that turns text into XML, so all escaping is here.

use std::fmt::Write;

/// An SVG document that is being drawn.
#[derive(Debug, Default)]
pub(crate) struct Canvas {
    body: String,
}

/// A rectangle, in pixels from the top left corner of the page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

impl Area {
    pub(crate) fn right(&self) -> f64 {
        self.x + self.width
    }

    pub(crate) fn bottom(&self) -> f64 {
        self.y + self.height
    }
}

impl Canvas {
    /// Draws a rectangle of the CSS class `class`. A viewer shows `tip` as a tooltip.
    pub(crate) fn rect(&mut self, area: Area, class: &str, tip: &str) {
        let Area { x, y, width, height } = area;
        // One decimal is a tenth of a pixel. More digits would only make the file larger.
        self.push(format_args!(
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}""#
        ));
        // Viewers show the element `title` as a tooltip.
        if tip.is_empty() {
            self.push(format_args!("/>\n"));
        } else {
            self.push(format_args!("><title>{}</title></rect>\n", escape(tip)));
        }
    }

    /// Draws a text. Its class decides whether the base line starts, ends or has its middle at the
    /// point.
    pub(crate) fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        self.push(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>\n",
            escape(text)
        ));
    }

    /// Draws a vertical line.
    pub(crate) fn down(&mut self, x: f64, (from, to): (f64, f64), class: &str) {
        self.push(format_args!("<path class=\"{class}\" d=\"M{x:.1} {from:.1}V{to:.1}\"/>\n"));
    }

    /// Draws a path. `commands` must come from this program, because they are not escaped.
    pub(crate) fn path(&mut self, class: &str, commands: &str) {
        if !commands.is_empty() {
            self.push(format_args!("<path class=\"{class}\" d=\"{commands}\"/>\n"));
        }
    }

    /// Returns the whole document.
    pub(crate) fn finish(self, (width, height): (f64, f64), title: &str, style: &str) -> String {
        format!(
            concat!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" width="{w:.0}" height="{h:.0}" "#,
                r#"viewBox="0 0 {w:.0} {h:.0}" role="img">"#,
                "\n<title>{title}</title>\n{style}",
                "<rect class=\"page\" width=\"{w:.0}\" height=\"{h:.0}\"/>\n{body}</svg>\n"
            ),
            w = width,
            h = height,
            title = escape(title),
            style = style,
            body = self.body
        )
    }

    fn push(&mut self, arguments: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _written = self.body.write_fmt(arguments);
    }
}

/// Returns the path commands of a closed rectangle.
pub(crate) fn rectangle_path(area: Area) -> String {
    let (right, bottom) = (area.right(), area.bottom());
    format!("M{:.1} {:.1}H{right:.1}V{bottom:.1}H{:.1}Z", area.x, area.y, area.x)
}

/// Escapes a text for an XML element or attribute.
///
/// Characters that XML forbids are replaced. Texts from outside are [`PlainText`] already, which
/// has none of them. This is a second line of defence.
///
/// [`PlainText`]: super::plain::PlainText
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // These two are outside of the characters that XML 1.0 permits.
            '\u{fffe}' | '\u{ffff}' => escaped.push(char::REPLACEMENT_CHARACTER),
            _ if character.is_control() => escaped.push(char::REPLACEMENT_CHARACTER),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_hostile_text() {
        let hostile = "</text><script>alert('1')</script>&\"\u{0}\u{1b}\u{ffff}";
        let mut canvas = Canvas::default();
        canvas.text(1.0, 2.0, "a", hostile);
        canvas.rect(Area { x: 0.0, y: 0.0, width: 1.0, height: 1.0 }, "b", hostile);
        let svg = canvas.finish((10.0, 10.0), hostile, "");
        let document = roxmltree::Document::parse(&svg).unwrap();
        let shown = hostile.replace(['\0', '\u{1b}', '\u{ffff}'], "�");
        let texts = document.descendants().filter(|node| node.is_text());
        let texts: Vec<_> = texts.filter_map(|node| node.text()).filter(|t| *t != "\n").collect();
        assert_eq!(texts, [&shown; 3]);
        assert!(!document.descendants().any(|node| node.has_tag_name("script")));
    }
}
