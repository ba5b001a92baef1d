// A table: `columns` are [label, number, note, sort address, sorted], `rows` are lists of
// [text, address, tone, note]. Every text is written as text.
export default {
  template: `
    <div class="table-frame" tabindex="0"><table>
      <thead><tr>
        <th v-for="[label, number, note, sort, sorted] in columns" scope="col"
            :class="{number}" :title="note || null" :aria-sort="sorted || null">
          <a v-if="sort" :href="sort">{{ label }}<span aria-hidden="true">{{
            sorted === "ascending" ? " ▲" : sorted === "descending" ? " ▼" : "" }}</span></a>
          <template v-else>{{ label }}</template>
        </th>
      </tr></thead>
      <tbody>
        <tr v-for="row in rows">
          <td v-for="([text, address, tone, note], i) in row" :title="note || null"
              :class="[tone, {number: columns[i] && columns[i][1], short: text.length <= 28}]">
            <a v-if="address" :href="address">{{ text }}</a><template v-else>{{ text }}</template>
          </td>
        </tr>
      </tbody>
    </table></div>`,
  props: { columns: Array, rows: Array },
};
