// Sign in with an API key, which the page forgets at once.

import { signIn } from "../api.js";
import { h, show } from "../dom.js";
import { notice, page } from "../parts.js";

export function mount(root, { onSignedIn }) {
  const field = h("input", { id: "key", type: "password", autocomplete: "current-password", spellcheck: "false", required: true, maxlength: 512, placeholder: "sk-…" });
  const refused = h("div", { class: "refused" });
  const button = h("button", { class: "primary", type: "submit" }, "Sign in");
  const form = h("form", { class: "card signin" },
    // Password managers want to know whose key it is.
    h("input", { type: "text", name: "username", autocomplete: "username", value: "overnight", hidden: true, readonly: true }),
    h("label", { for: "key" }, "API key"), field, refused, button,
    h("p", { class: "hint" }, "The key that your programs use: the one in ", h("code", {}, "OVERNIGHT_API_KEY"),
      " (", h("code", {}, "overnight up"), " prints it), or one of ", h("code", {}, "overnight keys create"),
      ". This browser gets a cookie instead and keeps no key."));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    show(refused);
    try {
      onSignedIn(await signIn(field.value));
    } catch (error) {
      show(refused, notice(error.status === 401 ? "This key opens nothing here. Check that it is whole, and was not revoked." : error.message));
      field.select();
    } finally {
      button.disabled = false;
    }
  });
  page(root, "Sign in", form);
  field.focus();
}
