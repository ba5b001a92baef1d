// A token stream: `tokens` are [text, colour, note, faint]. Every text is written as text.
export default {
  template: `
    <div class="tokens"><span v-for="[text, colour, note, faint] in tokens" :title="note || null"
      :class="{faint, coloured: colour}" :style="colour ? {backgroundColor: colour} : null">{{ text
      }}</span></div>`,
  props: { tokens: Array },
};
